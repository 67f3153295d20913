"""Steps of the dataflow: each takes a batch and gives a batch, and turns bad data into a Failure."""
