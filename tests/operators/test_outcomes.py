"""Records that come again end as they did before, however the world has changed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from builders import event_of, record_of
from core.records import Event, Failure, FetchedEvent, Position
from operators.outcomes import read_as_before

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def event(number: int) -> Event:
    return event_of(event_id=f"event-{number}", note_id=f"note-{number}", record=record_of(number))


def failure(found: Event) -> Failure:
    return Failure("fetch", "MissingObject", "gone", found.record, NOON)


@dataclass
class Earlier:
    stored: set[Position] = field(default_factory=set)
    failed: set[Position] = field(default_factory=set)
    contents: dict[Position, bytes] = field(default_factory=dict)

    def outcomes(self, events: object) -> Earlier:
        return self

    def content(self, found: Event) -> bytes | None:
        return self.contents.get(found.position)


def all_missing(events: list[Event]) -> list[FetchedEvent | Failure]:
    return [failure(found) for found in events]


def all_there(events: list[Event]) -> list[FetchedEvent | Failure]:
    return [FetchedEvent(found, b"now") for found in events]


def test_what_failed_is_not_tried_again() -> None:
    first, second = event(1), event(2)
    assert read_as_before([first, second], Earlier(failed={first.position}), all_there) == [
        FetchedEvent(second, b"now")
    ]


def test_what_is_stored_and_gone_by_now_has_the_content_that_is_stored() -> None:
    first, second = event(1), event(2)
    earlier = Earlier(stored={first.position}, contents={first.position: b"then"})
    assert read_as_before([first, second], earlier, all_missing) == [FetchedEvent(first, b"then"), failure(second)]


def test_what_is_stored_and_can_be_read_is_read() -> None:
    first = event(1)
    earlier = Earlier(stored={first.position}, contents={first.position: b"then"})
    assert read_as_before([first], earlier, all_there) == [FetchedEvent(first, b"now")]


def test_a_failure_stays_one_when_no_content_is_stored() -> None:
    first = event(1)
    assert read_as_before([first], Earlier(stored={first.position}), all_missing) == [failure(first)]
