"""A flow whose snapshots show whether they are of one moment; processes run it as

    python -m bytewax.run counting_flow:flow

Two partitions count up to LAST; five keys count what reaches them and write each count to RESULT. Were the source's
position and the counts not from the same moment, the last counts would be too high or too low.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from core.recovery import attach_to_bytewax_run
from core.settings import load_settings
from core.telemetry import configure_logging

LAST = int(os.environ["LAST"])
PACE = timedelta(milliseconds=float(os.environ["PACE_MS"]))
RESULT = Path(os.environ["RESULT"])


class Partition(StatefulSourcePartition[int, int]):
    def __init__(self, resume: int | None) -> None:
        self._number = resume or 0

    def next_batch(self) -> list[int]:
        if self._number >= LAST:
            if os.environ.get("IDLE"):
                return []
            raise StopIteration
        self._number += 1
        return [self._number]

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + PACE

    def snapshot(self) -> int:
        return self._number


class Numbers(FixedPartitionedSource[int, int]):
    def list_parts(self) -> list[str]:
        return ["a", "b"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Partition:
        return Partition(resume_state)


class Lines(StatelessSinkPartition[tuple[str, int]]):
    def write_batch(self, items: list[tuple[str, int]]) -> None:
        with RESULT.open("a") as file:
            file.writelines(f"{key} {count}\n" for key, count in items)

    def close(self) -> None:
        with RESULT.with_suffix(".closed").open("a") as file:
            file.write("closed\n")


class Result(DynamicSink[tuple[str, int]]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Lines:
        return Lines()


def flow() -> Dataflow:
    configure_logging(load_settings())
    graph = Dataflow("counting")
    numbers = op.input("numbers", graph, Numbers())
    keyed = op.key_on("key", numbers, lambda number: str(number % 5))
    step = os.environ.get("COUNT_STEP", "count")
    counts = op.stateful_map(step, keyed, lambda count, _: ((count or 0) + 1, (count or 0) + 1))
    op.output("result", counts, Result())
    attach_to_bytewax_run(load_settings(), flow="counting", graph=graph)
    return graph
