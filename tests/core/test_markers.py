"""A marker covers exactly what was committed, in whatever order the positions were told to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.markers import Marker
from core.records import Position

# Kinesis' own sequence numbers have 56 digits.
positions = st.builds(
    Position,
    st.sampled_from(["shardId-000000000000", "shardId-000000000001", "ü"]),
    st.integers(0, 10**56),
    st.integers(0, 3),
)
markers = st.builds(
    lambda found, number: Marker().advanced(found, commit_number=number),
    st.lists(positions, max_size=8),
    st.integers(0, 2**40),
)


@given(st.lists(positions), positions)
def test_a_marker_covers_a_position_if_one_at_or_after_it_in_its_shard_was_committed(
    committed: list[Position], asked: Position
) -> None:
    expected = any(one.shard_id == asked.shard_id and one >= asked for one in committed)
    assert Marker().advanced(committed).covers(asked) is expected


@given(markers, st.lists(positions), positions)
def test_an_advanced_marker_still_covers_what_it_covered(
    marker: Marker, more: list[Position], asked: Position
) -> None:
    advanced = marker.advanced(more)
    assert all(advanced.covers(one) for one in more)
    if marker.covers(asked):
        assert advanced.covers(asked)
    assert advanced.commit_number == marker.commit_number


@given(st.lists(positions), st.lists(positions))
def test_advancing_in_steps_and_at_once_gives_the_same(first: list[Position], second: list[Position]) -> None:
    assert Marker().advanced(first).advanced(second) == Marker().advanced(second + first)


@given(markers, markers, positions)
def test_a_joined_marker_covers_what_either_covers(one: Marker, other: Marker, asked: Position) -> None:
    joined = one.joined(other)
    assert joined.covers(asked) is (one.covers(asked) or other.covers(asked))
    assert joined == other.joined(one)
    assert joined.commit_number == max(one.commit_number, other.commit_number)


@given(markers)
def test_a_marker_survives_json(marker: Marker) -> None:
    assert Marker.from_json(marker.to_json()) == marker


def test_the_json_of_a_marker_is_stable_because_tables_hold_it() -> None:
    marker = Marker().advanced([Position("b", 10**55, 2), Position("a", 7)], commit_number=3)
    assert marker.to_json() == f'{{"commit":3,"shards":{{"a":["7",0],"b":["{10**55}",2]}}}}'


def test_subsequence_numbers_of_an_aggregated_record_are_told_apart() -> None:
    marker = Marker().advanced([Position("a", 7, 1)])
    assert marker.covers(Position("a", 7, 0))
    assert not marker.covers(Position("a", 7, 2))
    assert not marker.covers(Position("other", 1))
