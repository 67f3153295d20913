"""A bounded range of a stream: where it begins and ends, and whose positions its records have."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SettingsError, SnapshotError
from core.markers import Marker
from core.records import Position, RawRecord
from sources.kinesis_client import Read
from sources.kinesis_range import StreamRange, bounded, cut
from sources.kinesis_state import PartitionState, refuse_other_start

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SHARD = "shardId-000000000001"


def record(number: int) -> RawRecord:
    """One record a minute; sequence numbers count them."""
    return RawRecord(b"%d" % number, "key", NOON + timedelta(minutes=number), Position(SHARD, number))


def read_in_pieces(bounds: StreamRange, count: int, sizes: list[int]) -> list[RawRecord]:
    """Read a shard of `count` records as the service gives it, until there is no next iterator."""
    emitted: list[RawRecord] = []
    start = 0
    for size in [*sizes, count]:
        piece = tuple(record(number) for number in range(start, min(start + size, count)))
        start += len(piece)
        answer = cut(Read(piece, "next", caught_up=not piece, time=NOON), bounds)
        emitted += answer.records
        if answer.next_iterator is None:
            return emitted
    return emitted


@given(st.integers(0, 30), st.integers(0, 30), st.lists(st.integers(0, 9), max_size=8))
def test_times_exclude_the_end_and_sequence_numbers_include_it(count: int, end: int, sizes: list[int]) -> None:
    created = NOON + timedelta(days=1)
    by_time = bounded("replay-1", start="trim-horizon", until=NOON + timedelta(minutes=end), now=created)
    by_number = bounded("replay-1", start="trim-horizon", until=Position(SHARD, end), now=created)

    numbers = [one.position.sequence_number for one in read_in_pieces(by_time, count, sizes)]
    assert numbers == [number for number in range(count) if number < end]
    numbers = [one.position.sequence_number for one in read_in_pieces(by_number, count, sizes)]
    assert numbers == [number for number in range(count) if number <= end]


def test_no_marker_of_the_flow_covers_a_replays_positions_and_rows_keep_the_true_shard() -> None:
    bounds = bounded("replay-1", start="trim-horizon", until=None, now=NOON + timedelta(days=1))
    (one,) = cut(Read((record(3),), "next", caught_up=False, time=NOON), bounds).records
    live = Marker().advanced([record(9).position])

    assert not live.covers(one.position)
    assert one.position.stream_shard_id == SHARD
    replayed = live.advanced([one.position])
    assert replayed.covers(one.position)
    assert replayed.covers(record(9).position)
    # The next replay's positions take the place of this one's, the flow's stay.
    later = replayed.advanced([Position(f"replay-2/{SHARD}", 1)])
    assert set(later.positions) == {SHARD, f"replay-2/{SHARD}"}
    assert set(later.advanced([record(10).position]).positions) == {SHARD, f"replay-2/{SHARD}"}


def test_the_end_is_where_the_stream_ended_when_the_range_was_made() -> None:
    for until in (None, NOON + timedelta(hours=1)):
        bounds = bounded("replay-1", start="trim-horizon", until=until, now=NOON)
        assert bounds.until == NOON
    early = Read((), "next", caught_up=True, time=NOON - timedelta(seconds=1))
    assert not cut(early, bounds).caught_up
    assert cut(Read((), "next", caught_up=True, time=NOON), bounds).caught_up


def test_a_sequence_number_is_about_its_own_shard() -> None:
    assert bounded("r", start=Position(SHARD, 1), until=None, now=NOON).shard_id == SHARD
    assert bounded("r", start="trim-horizon", until=Position(SHARD, 1), now=NOON).shard_id == SHARD
    assert bounded("r", start="trim-horizon", until=None, now=NOON).shard_id is None


@pytest.mark.parametrize(
    ("start", "until", "said"),
    [
        (Position(SHARD, 1), Position("shardId-000000000002", 5), "one shard"),
        (Position(SHARD, 5), Position(SHARD, 4), "before"),
        (NOON, NOON, "before"),
        (NOON + timedelta(days=2), None, "before"),
    ],
)
def test_a_range_with_nothing_in_it_is_refused(
    start: datetime | Position, until: datetime | Position | None, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        bounded("r", start=start, until=until, now=NOON + timedelta(days=1))


@pytest.mark.parametrize(
    ("began", "asked", "refused"),
    [
        ("trim-horizon", "trim-horizon", False),
        (NOON, "trim-horizon", False),
        (NOON, "latest", False),
        (NOON, NOON, False),
        (Position(SHARD, 1), Position(SHARD, 1), False),
        ("trim-horizon", "latest", True),
        ("trim-horizon", NOON, True),
        (NOON, NOON + timedelta(hours=1), True),
        (NOON, Position(SHARD, 1), True),
    ],
)
def test_a_start_that_the_snapshot_did_not_begin_at_is_refused(began: Any, asked: Any, refused: bool) -> None:
    state = PartitionState("notes", 1, began)
    assert PartitionState.from_snapshot(state.to_snapshot(), stream="notes", partitions=1).start == began
    with pytest.raises(SnapshotError, match="PKM_FORCE_START") if refused else contextlib.nullcontext():
        refuse_other_start(state, asked, shown="…")
