"""Tells a sink that takes a store over whether this process may still do so.

A store belongs to whoever claimed it last. A process that slept between its start and its claims would take the
stores away from the execution that has replaced it meanwhile; so it asks. The place for that is between the look at a
store and the claim that is built on it: whoever replaces this process after the answer changes the store after the
look, and the claim fails. Where a claim can't depend on a look (SlateDB), asking first is the most that can be done.
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
