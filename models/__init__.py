"""Models that ship with the product, and how models are found and loaded."""
