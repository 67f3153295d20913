"""What puts content on S3 and announces it on the stream."""
