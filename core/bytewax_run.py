"""What plain `python -m bytewax.run` was told: for a flow that is built by it, before the engine starts."""

from __future__ import annotations

import sys
from argparse import Namespace

__all__ = ["options", "processes"]


def options() -> Namespace | None:
    """Return the engine's options; None in other programs, such as `bytewax.visualize`, a test or our own runner."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    if specification is None or specification.name != "bytewax.run":
        return None
    # bytewax's own reading of arguments and environment; it has succeeded once already, and reads nothing else but
    # the file of addresses.
    from bytewax.run import _parse_args

    found: Namespace = _parse_args()  # type: ignore[no-untyped-call]
    return found


def processes() -> int:
    """Return how many processes the flow has: 1 unless `bytewax.run` was told of others."""
    found = options()
    if found is None or found.process_id is None or not found.addresses:
        return 1
    return len(found.addresses.split(";"))
