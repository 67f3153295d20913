"""The breaker: when it trips, what it counts, and what a restart does; and the whole flow stopped by it."""

from __future__ import annotations

import pickle
from collections import deque
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import FailureRateError
from core.halt import Halt
from core.records import Failure, Position, RawRecord, Watermark
from operators.failure_rate import FailureRate, Outcomes, _bad, _good, _Guard

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
FETCH = ("fetch", "MissingObject")
PARSE = ("parse", "NotJson")
WATERMARK = Watermark(0, 1, NOW)


def good(count: int) -> Outcomes:
    return Outcomes(count)


def bad(count: int, label: tuple[str, str] = FETCH) -> Outcomes:
    return Outcomes(0, ((label, count),), "shardId-000000000000:7 (the object does not exist)")


def rate(window: int = 10, limit: float = 0.5) -> FailureRate:
    return FailureRate(limit, window)


def failure(step: str) -> Failure:
    record = RawRecord(b"{}", "key", NOW, Position("shardId-000000000000", 7))
    return Failure(step, "MissingObject", "the object does not exist", record, NOW)


def test_nothing_is_exceeded_before_the_window_is_full() -> None:
    known = rate()
    known.observe(bad(9))
    assert not known.exceeded
    known.observe(bad(1))
    assert known.exceeded


def test_exactly_the_limit_is_allowed() -> None:
    known = rate()
    known.observe(bad(5))
    known.observe(good(5))
    assert not known.exceeded
    known.observe(bad(6))
    assert known.exceeded


def test_a_limit_of_one_never_stops() -> None:
    known = rate(limit=1.0)
    known.observe(bad(100))
    assert not known.exceeded


@given(
    st.lists(st.lists(st.sampled_from([None, FETCH, PARSE]), max_size=8), max_size=12),
    st.integers(1, 20),
    st.floats(0.05, 1.0),
)
def test_the_rate_is_that_of_the_newest_outcomes_also_across_snapshots(
    batches: list[list[tuple[str, str] | None]], window: int, limit: float
) -> None:
    known = FailureRate(limit, window)
    model: deque[tuple[str, str] | None] = deque(maxlen=window)
    for batch in batches:
        for outcome in batch:
            known.observe(good(1) if outcome is None else bad(1, outcome))
            model.append(outcome)
        restored = FailureRate(limit, window)
        restored.restore(pickle.loads(pickle.dumps(known.to_snapshot())))
        known = restored
        failed = sum(outcome is not None for outcome in model)
        assert known.failed.total() == failed
        assert list(known.outcomes) == list(model)
        assert known.exceeded == (len(model) == window and failed / window > limit)


def test_a_shorter_window_keeps_the_newest_outcomes() -> None:
    known = rate()
    known.observe(bad(5))
    known.observe(good(5))
    shorter = rate(window=5)
    shorter.restore(known.to_snapshot())
    assert shorter.failed.total() == 0


def test_it_asks_for_a_halt_and_raises_only_when_the_epoch_has_ended() -> None:
    halt = Halt()
    guard = _Guard(0.5, 10, halt, None)
    guard.on_batch([bad(8, PARSE), bad(2)])
    assert isinstance(halt.error, FailureRateError)
    for said in ("100%", "10 records", "step parse with NotJson (8)", "shardId-000000000000:7", "pkm dlq redrive"):
        assert said in str(halt.error)
    guard.on_batch([bad(5), WATERMARK])
    guard.snapshot()
    with pytest.raises(FailureRateError, match="NotJson"):
        guard.on_batch([WATERMARK])


def stopped_state(window: int = 100) -> object:
    guard = _Guard(0.5, window, Halt(), None)
    guard.on_batch([bad(window)])
    return guard.snapshot()


def test_a_restart_with_the_cause_still_there_stops_at_once_and_commits_nothing() -> None:
    guard = _Guard(0.5, 100, Halt(), stopped_state())
    guard.on_batch([bad(9)])
    with pytest.raises(FailureRateError):
        guard.on_batch([bad(1)])


def test_a_restart_with_the_cause_repaired_goes_on() -> None:
    halt = Halt()
    guard = _Guard(0.5, 100, halt, stopped_state())
    guard.on_batch([bad(5), good(5)])
    guard.on_batch([good(85), bad(40)])
    assert halt.error is None
    again = _Guard(0.5, 100, halt, guard.snapshot())
    again.on_batch([bad(9)])
    assert halt.error is None


def test_a_restart_with_a_higher_limit_goes_on() -> None:
    halt = Halt()
    guard = _Guard(1.0, 100, halt, stopped_state())
    guard.on_batch([bad(1000)])
    assert halt.error is None


def test_a_late_document_is_stored_and_counts_as_a_success() -> None:
    assert _bad([failure("windows")]) == []
    (outcomes,) = _bad([failure("windows"), failure("fetch"), failure("fetch")])
    assert outcomes.failures == ((FETCH, 2),)
    assert _good([None, None]) == [Outcomes(2)]  # type: ignore[list-item]
