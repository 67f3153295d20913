"""Slow steps get fewer records at a time, so that an epoch keeps about its length; fast ones get all they may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.pace import Pace


def run(pace: Pace, *, seconds_per_record: float, batches: int) -> list[int]:
    """Hand on what the pace allows, and come back when it is done; returns the sizes."""
    now, sizes = 0.0, []
    for _ in range(batches):
        pace.asked(now)
        sizes.append(pace.records)
        pace.handed_on(pace.records, now)
        now += pace.records * seconds_per_record
    pace.asked(now)
    return sizes


@pytest.fixture
def pace() -> Pace:
    """The pace of steps that were fast so far."""
    pace = Pace(20, 5.0)
    run(pace, seconds_per_record=0.01, batches=6)
    return pace


def test_the_first_batch_is_one_record_and_fast_steps_soon_get_whole_batches() -> None:
    assert run(Pace(20, 5.0), seconds_per_record=0.01, batches=7) == [1, 2, 4, 8, 16, 20, 20]


def test_slow_steps_never_get_a_whole_batch() -> None:
    assert run(Pace(20, 5.0), seconds_per_record=1.0, batches=6) == [1, 2, 4, 8, 6, 6]


def test_the_first_batch_may_wait_for_models_and_stores() -> None:
    pace = Pace(20, 5.0)
    pace.handed_on(1, 0.0)
    pace.asked(60.0)
    assert run(pace, seconds_per_record=0.01, batches=5) == [2, 4, 8, 16, 20]


def test_epochs_of_another_worker_do_not_keep_the_first_batches_small() -> None:
    pace, sizes = Pace(20, 5.0), []
    for number in range(6):
        pace.asked(number * 5.2)
        sizes.append(pace.records)
        pace.handed_on(pace.records, number * 5.2)
    assert sizes == [1, 2, 4, 8, 16, 20]


def test_after_one_slow_batch_the_next_takes_a_bit_more_than_an_epoch(pace: Pace) -> None:
    assert run(pace, seconds_per_record=1.0, batches=4) == [20, 6, 6, 6]


def test_a_batch_that_takes_a_bit_less_than_an_epoch_is_followed_by_one_that_takes_a_bit_more(pace: Pace) -> None:
    run(pace, seconds_per_record=1.2, batches=2)
    assert run(pace, seconds_per_record=0.8, batches=4) == [5, 7, 7, 7]


def test_a_batch_that_was_small_for_want_of_records_does_not_make_the_next_small(pace: Pace) -> None:
    run(pace, seconds_per_record=1.0, batches=2)
    assert pace.records == 6
    pace.handed_on(1, 100.0)
    pace.asked(104.0)
    assert pace.records == 6


def test_a_single_record_is_always_handed_on(pace: Pace) -> None:
    assert run(pace, seconds_per_record=600.0, batches=3) == [20, 1, 1]


def test_the_batches_grow_again_when_steps_are_fast(pace: Pace) -> None:
    run(pace, seconds_per_record=10.0, batches=2)
    assert run(pace, seconds_per_record=0.01, batches=6) == [1, 2, 4, 8, 16, 20]


def test_waiting_for_the_epoch_of_another_worker_is_not_slowness(pace: Pace) -> None:
    for number in range(10):
        pace.asked(number * 5.2)
        pace.handed_on(20, number * 5.2)
    assert pace.records == 20


def test_a_partition_without_records_says_nothing(pace: Pace) -> None:
    pace.handed_on(0, 0.0)
    pace.asked(1_000.0)
    assert pace.records == 20


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1e6)), max_size=30), st.integers(1, 40))
def test_the_size_stays_between_one_and_the_most(batches: list[tuple[int, float]], most: int) -> None:
    pace, now = Pace(most, 5.0), 0.0
    for records, seconds in batches:
        pace.handed_on(min(records, most), now)
        now += seconds
        pace.asked(now)
        assert 1 <= pace.records <= most


@pytest.mark.parametrize("seconds_per_record", [0.3, 1.0, 2.0, 5.0])
def test_no_batch_but_the_first_takes_more_than_half_an_epoch_too_long(pace: Pace, seconds_per_record: float) -> None:
    for size in run(pace, seconds_per_record=seconds_per_record, batches=10)[1:]:
        assert size * seconds_per_record <= 7.5
