"""Arithmetic of shards: assignment, lineage, state and promises."""

from __future__ import annotations

import pickle
from datetime import UTC, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SnapshotError
from memory_stream import NOON, shard_name
from sources import kinesis_shards
from sources.kinesis_shards import (
    Shard,
    backoff_seconds,
    begun,
    foreign_children,
    low_watermark,
    partition_names,
    partition_of,
    pin_latest,
    readable,
    unbounded,
    waits_in_vain,
)
from sources.kinesis_state import Incarnation, PartitionState, ShardState

STREAM = Incarnation("arn:aws:kinesis:us-east-1:000000000000:stream/notes", NOON)


def admit(state: PartitionState, listing: dict[str, Shard], partition: int, **options: Any) -> PartitionState:
    return kinesis_shards.admit(state, listing, partition, incarnation=STREAM, **options)


def listing_of(*shards: Shard) -> dict[str, Shard]:
    return {shard.shard_id: shard for shard in shards}


def fresh(partitions: int = 1) -> PartitionState:
    return PartitionState("notes", partitions, "trim-horizon")


def drained(state: PartitionState, number: int) -> PartitionState:
    return state.with_shard(shard_name(number), ShardState("trim-horizon", 1, reached=NOON, drained=True))


@given(number=st.integers(0, 10**12 - 1), partitions=st.integers(1, 1024))
def test_a_shard_belongs_to_the_partition_of_its_number(number: int, partitions: int) -> None:
    assert partition_of(shard_name(number), partitions) == number % partitions


@given(shard_id=st.text(min_size=1), partitions=st.integers(1, 1024))
def test_any_shard_id_belongs_to_exactly_one_partition(shard_id: str, partitions: int) -> None:
    assert partition_of(shard_id, partitions) in range(partitions)


def test_a_shard_id_without_a_number_is_placed_the_same_on_every_machine() -> None:
    assert [partition_of("odd", 7), partition_of("strange-", 7)] == [2, 1]


def test_partition_names_are_recovery_keys_and_stay() -> None:
    assert partition_names(3) == ["partition-000", "partition-001", "partition-002"]


def test_a_child_shard_waits_for_both_parents() -> None:
    listing = listing_of(
        Shard(shard_name(0), closed=True),
        Shard(shard_name(1), closed=True),
        Shard(shard_name(2), parents=(shard_name(0), shard_name(1))),
    )
    state = admit(fresh(), listing, 0)
    assert readable(state, listing) == (shard_name(0), shard_name(1))
    state = drained(state, 1)
    assert readable(state, listing) == (shard_name(0),)
    state = drained(state, 0)
    assert readable(state, listing) == (shard_name(2),)


def test_a_child_waits_until_it_is_known_that_a_parent_of_another_partition_is_drained() -> None:
    listing = listing_of(Shard(shard_name(0), closed=True), Shard(shard_name(1), parents=(shard_name(0),)))
    state = admit(fresh(2), listing, 1)
    assert readable(state, listing) == ()
    assert readable(state, listing, {shard_name(0)}) == (shard_name(1),)
    del listing[shard_name(0)]
    assert readable(state, listing) == (shard_name(1),), "what the stream has forgotten can't be waited for"


def test_a_drained_shard_is_told_to_the_partitions_of_its_children() -> None:
    listing = listing_of(
        Shard(shard_name(0), closed=True),
        *(Shard(shard_name(number), parents=(shard_name(0),)) for number in (4, 5, 6)),
    )
    state = admit(fresh(4), listing, 0)
    assert foreign_children(state, listing, 0) == set()
    assert foreign_children(drained(state, 0), listing, 0) == {(shard_name(0), 1), (shard_name(0), 2)}


def test_what_waits_for_a_partition_that_has_ended_waits_in_vain_and_so_do_its_children() -> None:
    listing = listing_of(
        Shard(shard_name(0)),
        Shard(shard_name(1), closed=True),
        Shard(shard_name(2), parents=(shard_name(1),), closed=True),
        Shard(shard_name(4), parents=(shard_name(2),)),
    )
    state = admit(fresh(2), listing, 0)
    assert waits_in_vain(state, listing, (), ()) == set()
    assert waits_in_vain(state, listing, (), {1}) == {shard_name(2), shard_name(4)}
    assert waits_in_vain(state, listing, {shard_name(1)}, {1}) == set()


def test_what_waits_for_other_partitions_bounds_the_promise_and_what_waits_for_its_own_does_not() -> None:
    listing = listing_of(
        Shard(shard_name(0), closed=True),
        Shard(shard_name(1), closed=True),
        Shard(shard_name(2), parents=(shard_name(0),)),
        Shard(shard_name(4), parents=(shard_name(1),)),
    )
    state = admit(fresh(2), listing_of(*list(listing.values())[:3]), 0)
    state = admit(state, listing, 0, unseen_at=NOON)
    assert list(unbounded(state, listing, ())) == [NOON]
    assert list(unbounded(state, listing, {shard_name(1)})) == []


def test_what_a_child_holds_is_newer_than_what_its_parents_held() -> None:
    hour = timedelta(hours=1)
    listing = listing_of(
        Shard(shard_name(0), closed=True),
        Shard(shard_name(1), closed=True),
        Shard(shard_name(2), parents=(shard_name(0), shard_name(1))),
    )
    state = admit(fresh(), listing, 0)
    assert begun(state, listing, shard_name(2)).reached is None
    for number, reached in ((0, NOON), (1, NOON + hour)):
        state = state.with_shard(shard_name(number), ShardState("trim-horizon", 1, reached=reached, drained=True))
    assert begun(state, listing, shard_name(2)).reached == NOON + hour


def test_shards_of_the_first_listing_begin_at_the_start_and_later_ones_at_their_own() -> None:
    state = PartitionState("notes", 1, NOON)
    first = listing_of(Shard(shard_name(0)))
    state = admit(state, first, 0)
    later = NOON + timedelta(hours=1)
    state = admit(state, {**first, **listing_of(Shard(shard_name(1), parents=(shard_name(0),)))}, 0, unseen_at=later)
    assert state.shards == {
        shard_name(0): ShardState(NOON, reached=NOON),
        shard_name(1): ShardState("trim-horizon", reached=later),
    }


def test_a_drained_shard_is_forgotten_when_it_has_expired_but_an_unread_one_is_not() -> None:
    second = timedelta(seconds=1)
    listed = drained(admit(fresh(), listing_of(Shard(shard_name(0)), Shard(shard_name(1))), 0), 0)
    assert list(admit(listed, {}, 0, horizon=NOON + second).shards) == [shard_name(1)]
    assert list(admit(listed, {}, 0, horizon=NOON - second).shards) == [shard_name(0), shard_name(1)]


@st.composite
def lineages(draw: st.DrawFn) -> dict[str, Shard]:
    """A stream's history of splits and merges: parents are closed and have lower numbers."""
    parents: list[tuple[int, ...]] = [() for _ in range(draw(st.integers(1, 4)))]
    open_shards = list(range(len(parents)))
    for _ in range(draw(st.integers(0, 6))):
        split = draw(st.booleans()) or len(open_shards) < 2
        first = open_shards.pop(draw(st.integers(0, len(open_shards) - 1)))
        gone = (first,) if split else (first, open_shards.pop(draw(st.integers(0, len(open_shards) - 1))))
        for _ in range(2 if split else 1):
            open_shards.append(len(parents))
            parents.append(gone)
    return listing_of(
        *(
            Shard(shard_name(number), tuple(shard_name(parent) for parent in of), number not in open_shards)
            for number, of in enumerate(parents)
        )
    )


@given(listing=lineages(), partitions=st.integers(1, 4), data=st.data())
def test_every_shard_is_read_once_by_one_partition_and_after_its_parents(
    listing: dict[str, Shard], partitions: int, data: st.DataObject
) -> None:
    states = [admit(PartitionState("notes", partitions, "trim-horizon"), listing, n) for n in range(partitions)]
    released: list[set[str]] = [set() for _ in range(partitions)]
    order: list[str] = []
    while True:
        choices = [(n, shard) for n, state in enumerate(states) for shard in readable(state, listing, released[n])]
        if not choices:
            break
        partition, shard_id = data.draw(st.sampled_from(choices))
        order.append(shard_id)
        states[partition] = drained(states[partition], int(shard_id[-12:]))
        if data.draw(st.booleans()):
            snapshot = pickle.loads(pickle.dumps(states[partition].to_snapshot()))
            resumed = PartitionState.from_snapshot(snapshot, stream="notes", partitions=partitions)
            assert resumed == states[partition]
            states[partition] = admit(resumed, listing, partition)
        for told, receiver in foreign_children(states[partition], listing, partition):
            released[receiver].add(told)
    assert sorted(order) == sorted(listing), "each shard once"
    for place, shard_id in enumerate(order):
        assert set(listing[shard_id].parents) <= set(order[:place]), "after its parents"


@given(
    start=st.one_of(st.just("trim-horizon"), st.datetimes(timezones=st.just(UTC))),
    shards=st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.builds(
            ShardState,
            st.just("trim-horizon"),
            sequence_number=st.one_of(st.none(), st.integers(0, 10**56)),
            subsequence_number=st.integers(0, 10**6),
            reached=st.one_of(st.none(), st.datetimes(timezones=st.just(UTC))),
            drained=st.booleans(),
        ),
        max_size=4,
    ),
)
def test_a_state_survives_its_snapshot(start: object, shards: dict[str, ShardState]) -> None:
    state = PartitionState("notes", 4, start, STREAM, shards)  # type: ignore[arg-type]
    snapshot = pickle.loads(pickle.dumps(state.to_snapshot()))
    assert PartitionState.from_snapshot(snapshot, stream="notes", partitions=4) == state


def test_a_snapshot_of_another_stream_partition_count_or_version_is_refused() -> None:
    snapshot = fresh(4).to_snapshot()
    with pytest.raises(SnapshotError, match="set PKM_STREAM=notes"):
        PartitionState.from_snapshot(snapshot, stream="other", partitions=4)
    with pytest.raises(SnapshotError, match="set PKM_SOURCE_PARTITIONS=4"):
        PartitionState.from_snapshot(snapshot, stream="notes", partitions=8)
    with pytest.raises(SnapshotError, match="version 99"):
        PartitionState.from_snapshot({**snapshot, "version": 99}, stream="notes", partitions=4)


def test_a_promise_ends_at_the_slowest_shard_and_at_the_last_listing() -> None:
    minute = timedelta(minutes=1)
    assert low_watermark([NOON, NOON - minute], NOON + minute) == NOON - minute
    assert low_watermark([NOON + 2 * minute], NOON + minute) == NOON + minute
    assert low_watermark([], NOON) == NOON, "a partition without shards holds nothing back"
    assert low_watermark([NOON, None], NOON) is None, "a shard that was not read yet may hold anything"
    assert low_watermark([NOON], None) is None


@given(faults=st.integers(1, 10_000), uniform=st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_ten_seconds(faults: int, uniform: float) -> None:
    assert 0 <= backoff_seconds(faults, uniform) <= min(10.0, 0.2 * 2 ** min(faults - 1, 50))


def test_latest_is_the_local_time_unless_the_server_says_that_it_is_wrong() -> None:
    second = timedelta(seconds=1)
    assert pin_latest(NOON, None) == NOON
    assert pin_latest(NOON + 0.9 * second, NOON) == NOON + 0.9 * second
    assert pin_latest(NOON - 5 * second, NOON) == NOON - 5 * second
    assert pin_latest(NOON + 300 * second, NOON) == NOON
    assert pin_latest(NOON - 300 * second, NOON) == NOON
