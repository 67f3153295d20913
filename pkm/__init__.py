"""What a person types: commands, the local stack, queries."""
