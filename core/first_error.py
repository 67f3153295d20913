"""Keeps the first error that a step of a running flow gives to the engine, so that no second one follows.

On the way out of an error the engine closes all sinks. When one of them raises too, as it must while the same service
is down, the engine aborts the process in the middle of its report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import PkmError

__all__ = ["begin", "first_error", "note", "note_beside", "noted", "raise_beside"]


class _State:
    def __init__(self) -> None:
        self.error: PkmError | None = None
        self.beside: Exception | None = None


_state = _State()


def begin() -> None:
    """Forget what an earlier flow in this process ended with; called when its parts are built."""
    _state.error = _state.beside = None


def first_error() -> PkmError | None:
    """Return what the flow in this process is ending with; None while all is well."""
    return _state.error


def note(error: PkmError) -> None:
    """Note what ends the flow, unless something has already."""
    _state.error = _state.error or _without_its_stack(error)


@contextmanager
def noted() -> Iterator[None]:
    """Note an error on its way from a step to the engine."""
    try:
        yield
    except PkmError as error:
        note(error)
        raise


def note_beside(error: Exception) -> None:
    """Note what failed on a thread beside the stream, where nobody may ask for a long time.

    A step of an idle flow is not called, and its process would look well while nothing more is committed.
    """
    _state.beside = _state.beside or (_without_its_stack(error) if isinstance(error, PkmError) else error)


def raise_beside() -> None:
    """Raise what failed beside the stream, unless the flow is ending already; sources call this whenever asked."""
    if _state.beside is not None and _state.error is None:
        raise _state.beside


def _without_its_stack(error: PkmError) -> PkmError:
    # The error itself holds on to all that was on the stack, such as the sink that has to go.
    return type(error)(*error.args)
