"""Keeps the first error that a step of a running flow gives to the engine, so that no second one follows.

On the way out of an error the engine closes all sinks. When one of them raises too, as it must while the same service
is down, the engine aborts the process in the middle of its report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import PkmError

__all__ = ["begin", "first_error", "note", "noted"]


class _State:
    def __init__(self) -> None:
        self.error: PkmError | None = None


_state = _State()


def begin() -> None:
    """Forget what an earlier flow in this process ended with; called when its parts are built."""
    _state.error = None


def first_error() -> PkmError | None:
    """Return what the flow in this process is ending with; None while all is well."""
    return _state.error


def note(error: PkmError) -> None:
    """Note what ends the flow, unless something has already."""
    # A copy: the error itself holds on to all that was on the stack, such as the sink that has to go.
    _state.error = _state.error or type(error)(*error.args)


@contextmanager
def noted() -> Iterator[None]:
    """Note an error on its way from a step to the engine."""
    try:
        yield
    except PkmError as error:
        note(error)
        raise
