"""A flow ends with what failed beside its stream, also when nothing comes any more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink
from bytewax.testing import run_main

from core.errors import CommitError
from core.first_error import begin
from core.halt import Halt
from sinks.closing import CarefulPartition, ClosablePartition
from sinks.commit_queue import CommitQueue
from sources.halting import HaltingPartition

END_SECONDS = 20


class OneThenIdle(StatefulSourcePartition[tuple[str, int], None]):
    """Gives one item and then nothing; it ends by itself long after it should have been ended."""

    def __init__(self) -> None:
        self._items = [("part", 1)]
        self._end = datetime.now(UTC) + timedelta(seconds=END_SECONDS)

    def next_batch(self) -> list[tuple[str, int]]:
        if datetime.now(UTC) > self._end:
            raise StopIteration
        items, self._items = self._items, []
        return items

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=20)

    def snapshot(self) -> None:
        return None


class Source(FixedPartitionedSource[tuple[str, int], None]):
    def list_parts(self) -> list[str]:
        return ["only"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> HaltingPartition[tuple[str, int], None]:
        return HaltingPartition(OneThenIdle(), Halt())


class Part(ClosablePartition[int, None]):
    """Commits each epoch on a thread, which always fails."""

    def __init__(self, error: Exception) -> None:
        def commit(_: int) -> None:
            raise error

        self._queue = CommitQueue(commit, name="test")

    def write_batch(self, values: list[int]) -> None:
        """Keep nothing."""

    def snapshot(self) -> None:
        self._queue.submit(1, lambda: None)


class Sink(FixedPartitionedSink[int, None]):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def list_parts(self) -> list[str]:
        return ["part"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> CarefulPartition[int, None]:
        return CarefulPartition(Part(self._error))


@pytest.mark.parametrize("error", [CommitError("the catalog is down"), ValueError("a fault of our own")])
def test_an_idle_flow_ends_with_what_its_commit_failed_with(error: Exception) -> None:
    flow = Dataflow("idle")
    op.output("out", op.input("in", flow, Source()), Sink(error))
    began = datetime.now(UTC)
    try:
        with pytest.raises((BytewaxRuntimeError, type(error))) as caught:
            run_main(flow, epoch_interval=timedelta(seconds=0.1))
    finally:
        begin()
    assert datetime.now(UTC) - began < timedelta(seconds=END_SECONDS / 2)
    causes, cause = [], caught.value
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    assert str(error) in causes
