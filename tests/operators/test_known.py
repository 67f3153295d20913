"""What a replay takes from the stream: what the tables know, as they know it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.records import Event, Position, RawRecord, WindowAggregate
from operators.known import Known, digest

START = datetime(2026, 11, 23, 8, tzinfo=UTC)
SHARD = "shardId-000000000000"


def event(event_id: str, number: int, *, replay: str = "replay-1/") -> Event:
    record = RawRecord(b"{}", "key", START, Position(f"{replay}{SHARD}", number))
    return Event(event_id, "note", "git", "bucket", "key", None, 0, None, {}, START, False, record)


def known(current: list[tuple[str, int]], counted: list[tuple[str, int]]) -> Known:
    names = [
        frozenset(digest(event_id, Position(SHARD, number)) for event_id, number in group)
        for group in (current, counted)
    ]
    return Known(names[0], names[1], {(START, "git"): 2})


# The note was A, then B, then A again; the first A came twice, and X failed.
TABLES = known(current=[("A", 5)], counted=[("A", 1), ("B", 4)])


@pytest.mark.parametrize(
    ("event_id", "number", "outdated", "revived"),
    [("A", 1, True, False), ("B", 4, True, False), ("A", 5, False, True)],
)
def test_a_note_comes_from_its_own_record_and_each_event_counts_once(
    event_id: str, number: int, outdated: bool, revived: bool
) -> None:
    selected = TABLES.select(event(event_id, number))
    assert selected is not None
    assert (selected.outdated, selected.revived) == (outdated, revived)


@pytest.mark.parametrize(("event_id", "number"), [("A", 2), ("X", 3), ("B", 5), ("A", 4)])
def test_what_the_tables_do_not_know_is_passed_over(event_id: str, number: int) -> None:
    assert TABLES.select(event(event_id, number)) is None


def test_positions_are_the_same_whoever_reads_them() -> None:
    assert TABLES.select(event("A", 5, replay="")) is not None
    assert digest("A", Position(f"replay-2/{SHARD}", 5)) == digest("A", Position(SHARD, 5))
    assert digest("A", Position(SHARD, 5, 1)) != digest("A", Position(SHARD, 5))


def test_a_window_is_complete_with_all_its_events() -> None:
    def window(source_type: str, count: int) -> WindowAggregate:
        return WindowAggregate(START, START, source_type, count, count, 0, ())

    assert TABLES.is_complete(window("git", 2))
    assert not TABLES.is_complete(window("git", 1))
    assert not TABLES.is_complete(window("web", 2))
