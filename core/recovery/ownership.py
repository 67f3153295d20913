"""Tells a sink, before it takes a store over, whether this process may still do so.

A store belongs to whoever opened it last. A process that slept between its start and the opening of its stores would
take them away from the execution that has replaced it meanwhile; so it asks first.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["check_ownership", "hold", "release"]

_checks: list[Callable[[], None]] = []


def hold(check: Callable[[], None]) -> None:
    """Remember that this process runs an execution; `check` raises FencedError when a newer one claimed it."""
    _checks.append(check)


def release(check: Callable[[], None]) -> None:
    """Forget what `hold` was given; safe to repeat."""
    if check in _checks:
        _checks.remove(check)


def check_ownership() -> None:
    """Raise FencedError when a newer execution has claimed the flow that this process runs.

    Does nothing without recovery, and in the processes of a cluster that did not claim. Raises UnreachableError when
    S3 can't tell.
    """
    for check in _checks:
        check()
