"""The entity model that ships with the product: configuration, weights, model card and network."""
