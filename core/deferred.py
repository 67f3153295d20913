"""Recovery state that may be told before it is true, but is written down only when it is.

At the end of an epoch the engine first asks all parts of a step for their state and then pickles each. A part that
has to wait for a store starts its write when it is asked, and is waited for when its state is pickled: so the writes
of all parts go side by side, and still nothing is in the recovery store before it is in theirs. Where a copier
publishes the recovery store, it waits instead (`core.recovery.under_way`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

__all__ = ["deferred", "settled", "wrapped"]

S = TypeVar("S")


class _Deferred(Generic[S]):
    def __init__(self, result: Callable[[], S]) -> None:
        self.result = result

    def __reduce__(self) -> tuple[Callable[[S], S], tuple[S]]:
        return _itself, (self.result(),)


def _itself(state: S) -> S:
    return state


def deferred(result: Callable[[], S]) -> S:
    """Return what stands for the state that `result` returns or raises, as often as it is asked, once it is known.

    What is read back from the recovery store is that state itself.
    """
    return cast("S", _Deferred(result))


def settled(state: S) -> S:
    """Return the state itself: wait for it, if it is deferred."""
    return cast("S", state.result()) if isinstance(state, _Deferred) else state


def wrapped(state: S, around: Callable[[Callable[[], S]], S]) -> S:
    """Have `around` call what makes the state, if it is deferred; any other state is returned as it is."""
    if not isinstance(state, _Deferred):
        return state
    return deferred(lambda: around(state.result))
