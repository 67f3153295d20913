"""Lets a step of a running flow stop it: sources take no more records, what was read is committed, then it fails."""

from __future__ import annotations

from core.errors import PkmError

__all__ = ["Halt"]


class Halt:
    """A request to stop, shared by the steps of one flow in one process. The first request counts.

    Whoever sees the request in an epoch lets that epoch end, and raises the error in a later one: so everything up to
    the request is committed, and the next start goes on behind it.
    """

    def __init__(self) -> None:
        self._error: PkmError | None = None

    @property
    def error(self) -> PkmError | None:
        """Why the flow has to stop; None while it may go on."""
        return self._error

    def request(self, error: PkmError) -> None:
        """Ask the flow to stop with `error`."""
        if self._error is None:
            self._error = error
