"""Token buckets: a burst, then a steady rate, for each name by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.service.problems import ProblemError
from producers.service.rates import Bucket, Rates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_then_as_many_as_the_rate_allows() -> None:
    clock = Clock()
    rates = Rates(2.0, 3, clock)
    for _ in range(3):
        rates.take("a")
    with pytest.raises(ProblemError) as refused:
        rates.take("a")
    assert refused.value.retry_after_seconds == 0.5
    clock.now = 0.5
    rates.take("a")
    with pytest.raises(ProblemError):
        rates.take("a")


def test_names_do_not_take_from_each_other() -> None:
    rates = Rates(1.0, 1, Clock())
    rates.take("a")
    rates.take("b")


@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.floats(0, 5), max_size=100))
def test_never_more_than_the_burst_and_the_rate(rate: float, burst: int, pauses: list[float]) -> None:
    bucket, now, taken = Bucket(rate, burst, float(burst), 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now) == 0
    assert taken <= burst + rate * now + 1e-6


@given(st.floats(0.1, 100), st.integers(1, 50))
def test_who_waits_as_told_is_let_in(rate: float, burst: int) -> None:
    bucket = Bucket(rate, burst, 0.0, 0.0)
    assert bucket.take(bucket.take(0.0) + 1e-9) == 0
