"""State that is told before it is true: written down only when it is, and waited for side by side."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSource, run_main

from core.deferred import deferred, settled, wrapped
from core.errors import UnreachableError

PARTS = ("a", "b")


def test_what_is_read_back_is_the_state_itself() -> None:
    state = deferred(lambda: {"commit": 7})
    assert pickle.loads(pickle.dumps(state)) == {"commit": 7} == settled(state)
    assert settled("plain") == "plain"


def test_around_is_called_when_the_state_is_asked_for() -> None:
    asked: list[str] = []

    def around(result: object) -> str:
        asked.append("asked")
        return "around"

    state = wrapped(deferred(lambda: "state"), around)
    assert asked == []
    assert settled(state) == "around"
    assert wrapped("plain", around) == "plain"


class Part(StatefulSinkPartition[int, str]):
    """Commits on a thread, and only while the other part commits too."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write_batch(self, values: list[int]) -> None:
        """Keep nothing."""

    def snapshot(self) -> str:
        running: Future[str] = self._sink.threads.submit(self._sink.commit)
        return deferred(running.result)


class Sink(FixedPartitionedSink[int, str]):
    def __init__(self, *, fail: bool = False) -> None:
        self.threads = ThreadPoolExecutor(len(PARTS))
        self.both = threading.Barrier(len(PARTS), timeout=10)
        self.resumed: list[str | None] = []
        self._fail = fail

    def commit(self) -> str:
        if self._fail:
            raise UnreachableError("the store is down")
        return f"commit {self.both.wait() >= 0}"

    def list_parts(self) -> list[str]:
        return list(PARTS)

    def part_fn(self, item_key: str) -> int:
        return PARTS.index(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: str | None) -> Part:
        self.resumed.append(resume_state)
        return Part(self)


def run(sink: Sink, store: Path) -> None:
    flow = Dataflow("deferred")
    items = op.input("items", flow, TestingSource([("a", 1), ("b", 2)], batch_size=2))
    op.output("out", items, sink)
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(store)))


def test_the_parts_of_a_step_commit_side_by_side_and_resume_from_what_became_true(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    run(Sink(), tmp_path)
    again = Sink()
    run(again, tmp_path)
    assert again.resumed == ["commit True", "commit True"]


def test_a_commit_that_fails_ends_the_flow_and_leaves_no_state(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    with pytest.raises((UnreachableError, BytewaxRuntimeError)) as caught:
        run(Sink(fail=True), tmp_path)
    causes = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(type(error))
        error = error.__cause__ or error.__context__
    assert UnreachableError in causes
    again = Sink()
    run(again, tmp_path)
    assert again.resumed == [None, None]
