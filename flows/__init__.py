"""Dataflow graphs: one factory function each, no logic."""
