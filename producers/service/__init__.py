"""The HTTP service of `pkm ingest serve`: notes of agents and uploaded files, to S3 and the stream."""
