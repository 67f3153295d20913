"""Partitions of two workers stay in step, also after one of them was busy for longer than an epoch."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import TestingSink, cluster_main

from sources.phase import Phase

EPOCH = 0.5


class Counter(StatefulSourcePartition[tuple[str, float], None]):
    """Always has more to give, and says when it was asked."""

    def __init__(self, name: str, *, in_step: bool) -> None:
        self._name = name
        self._end = time.monotonic() + 5
        self._phase = Phase(EPOCH, time.monotonic())
        self._in_step = in_step

    def next_batch(self) -> list[tuple[str, float]]:
        if time.monotonic() > self._end:
            raise StopIteration
        self._phase.asked(time.monotonic())
        return [(self._name, time.monotonic())]

    def next_awake(self) -> datetime:
        wait = max(self._phase.hold_until - time.monotonic(), 0.02) if self._in_step else 0.02
        return datetime.now(UTC) + timedelta(seconds=wait)

    def snapshot(self) -> None:
        self._phase.epoch_ended(time.monotonic(), backlog=True)


class Source(FixedPartitionedSource[tuple[str, float], None]):
    def __init__(self, *, in_step: bool) -> None:
        self._in_step = in_step

    def list_parts(self) -> list[str]:
        return ["a", "b"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> Counter:
        return Counter(for_part, in_step=self._in_step)


def asked_after_a_delay(*, in_step: bool) -> dict[str, int]:
    """How often each partition was asked in the last two seconds, after a step held one worker up for 1.2 s."""
    began = time.monotonic()
    held_up: list[bool] = []

    def delay(item: tuple[str, float]) -> tuple[str, float]:
        if item[0] == "a" and not held_up and time.monotonic() - began > 0.3:
            held_up.append(True)
            time.sleep(1.2)
        return item

    flow = Dataflow("phase")
    seen: list[tuple[str, float]] = []
    items = op.input("in", flow, Source(in_step=in_step))
    op.output("out", op.map("delay", items, delay), TestingSink(seen))
    cluster_main(flow, [], 0, worker_count_per_proc=2, epoch_interval=timedelta(seconds=EPOCH))
    end = max(at for _, at in seen)
    return {name: sum(at > end - 2 and one == name for one, at in seen) for name in ("a", "b")}


def test_a_delay_of_one_worker_does_not_starve_the_others_partitions_for_ever() -> None:
    asked = asked_after_a_delay(in_step=True)
    assert min(asked.values()) > 30


def test_the_engine_asks_a_partition_that_is_out_of_step_less_often() -> None:
    # If this fails, the engine has learned to do it by itself, and sources/phase.py can go.
    asked = asked_after_a_delay(in_step=False)
    # Compared with each other: how often in all depends on the machine.
    assert min(asked.values()) * 2 < max(asked.values())


def test_a_partition_whose_steps_take_longer_than_an_epoch_seldom_waits_for_nothing() -> None:
    phase = Phase(1.0, 0.0)
    waits = 0
    for epoch in range(1, 201):
        phase.asked(epoch * 3.0)
        waits += phase.hold_until > epoch * 3.0
        phase.epoch_ended(epoch * 3.0, backlog=True)
    assert 1 <= waits <= 7


def test_a_partition_that_is_asked_often_or_has_nothing_never_waits() -> None:
    phase = Phase(1.0, 0.0)
    for epoch in range(1, 50):
        for _ in range(1 + epoch % 2):
            phase.asked(epoch)
        phase.epoch_ended(epoch * 1.0, backlog=bool(epoch % 2))
        assert phase.hold_until <= epoch
