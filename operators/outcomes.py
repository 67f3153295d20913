"""What a restart reads again ends as it did before: what failed stays failed, what was stored is not lost again.

An object may come late, or go: read a second time, a record can end otherwise than the first time, when some of the
tables were committed already. So the tables are asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from core.records import Event, Failure, FetchedEvent, Position

__all__ = ["History", "Outcomes", "read_as_before"]


class Outcomes(Protocol):
    """What earlier runs have made of some records; a record that is in neither collection is open."""

    @property
    def stored(self) -> Collection[Position]:
        """Records whose document is stored."""

    @property
    def failed(self) -> Collection[Position]:
        """Records whose failure is stored."""


class History(Protocol):
    """What earlier runs have stored of the stream."""

    def outcomes(self, events: Sequence[Event]) -> Outcomes:
        """Tell what became of the records of `events`."""

    def content(self, event: Event) -> bytes | None:
        """Return the content that is stored of an event, None without one."""


def read_as_before(
    events: list[Event], history: History, read: Callable[[list[Event]], list[FetchedEvent | Failure]]
) -> list[FetchedEvent | Failure]:
    """Return what `read` gives for the events, in order, without those whose failure is stored.

    An event whose document is stored, but whose object can't be read any more, is given the content that is stored.
    """
    earlier = history.outcomes(events)
    events = [event for event in events if event.position not in earlier.failed]
    return [
        _with_content(event, outcome, history)
        if isinstance(outcome, Failure) and event.position in earlier.stored
        else outcome
        for event, outcome in zip(events, read(events), strict=True)
    ]


def _with_content(event: Event, failure: Failure, history: History) -> FetchedEvent | Failure:
    content = history.content(event)
    return failure if content is None else FetchedEvent(event, content)
