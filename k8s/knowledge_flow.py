"""The file that waxctl mounts and `bytewax.run` executes; the flow itself is in the image."""

from flows.knowledge import flow

__all__ = ["flow"]
