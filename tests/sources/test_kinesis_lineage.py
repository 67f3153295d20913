"""Several partitions on workers of their own, as Bytewax runs them: order, delivery and promises across all of them.

The model has what the engine guarantees, and no more: a partition gives items in its epoch only when all
others have ended the one before; notices arrive at any later time, in order; a crash takes all back to the last
snapshot that is complete.
"""

from __future__ import annotations

import itertools
import pickle
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core.records import RawRecord, Watermark
from memory_stream import NOON, InlineCalls, MemoryStream, refusal
from sources.kinesis_client import StreamReader
from sources.kinesis_notices import Board, Notice
from sources.kinesis_partition import KinesisPartition
from sources.kinesis_shards import partition_of
from sources.kinesis_state import PartitionState

KEYS = [f"key {number}" for number in range(8)]


@dataclass
class Cluster:
    """Partitions that share nothing but the stream and their notices; times are the stream's."""

    stream: MemoryStream
    partitions: int
    committed: list[tuple[int, int, RawRecord]] = field(default_factory=list)
    """Epoch, partition and record of all complete epochs."""
    epoch: int = 0
    snapshots: list[Any] = field(default_factory=list)

    def start(self, *, until_caught_up: bool = False) -> None:
        self.parts: list[KinesisPartition | None] = []
        self.boards = [Board() for _ in range(self.partitions)]
        self.mail: list[deque[Notice]] = [deque() for _ in range(self.partitions)]
        self.emitted: list[tuple[int, int, RawRecord]] = []
        for number in range(self.partitions):
            state = (
                PartitionState.from_snapshot(self.snapshots[number], stream="notes", partitions=self.partitions)
                if self.snapshots
                else PartitionState("notes", self.partitions, "trim-horizon")
            )
            self.boards[number].begin(number)
            self.parts.append(
                KinesisPartition(
                    StreamReader(self.stream, "notes", now=lambda: self.stream.time),  # type: ignore[arg-type]
                    state,
                    partition=number,
                    pin=False,
                    batch_records=3,
                    until_caught_up=until_caught_up,
                    on_data_loss="fail",
                    patience=timedelta(hours=1),
                    epoch=timedelta(seconds=1),
                    calls=InlineCalls(),
                    board=self.boards[number],
                    now=lambda: self.stream.time,
                    monotonic=lambda: (self.stream.time - NOON).total_seconds(),
                    uniform=lambda: 0.5,
                )
            )

    def step(self, number: int, put: dict[str, tuple[Any, str]]) -> None:
        part = self.parts[number]
        if part is None:
            return
        awake = part.next_awake() or self.stream.time
        self.stream.time = max(awake, self.stream.time) + timedelta(milliseconds=1)
        try:
            batch = part.next_batch()
        except StopIteration:
            self.parts[number] = None
            self.snapshots_at_end[number] = pickle.loads(pickle.dumps(part.snapshot()))
            return
        for item in batch:
            if isinstance(item, RawRecord):
                self.emitted.append((self.epoch, number, item))
            elif isinstance(item, Notice):
                self.mail[item.receiver].append(item)
            else:
                self._check(item, put)

    def deliver(self, number: int, count: int) -> None:
        for _ in range(min(count, len(self.mail[number]))):
            self.boards[number].post(self.mail[number].popleft())

    def end_epoch(self) -> None:
        self.snapshots = [
            pickle.loads(pickle.dumps(part.snapshot())) if part else self.snapshots_at_end[number]
            for number, part in enumerate(self.parts)
        ]
        self.committed += self.emitted
        self.emitted = []
        self.epoch += 1

    def _check(self, promise: Watermark, put: dict[str, tuple[Any, str]]) -> None:
        done = {record.data.decode() for _, _, record in self.committed}
        for data, (time, shard_id) in put.items():
            if partition_of(shard_id, self.partitions) == promise.source_partition and time <= promise.time:
                assert data in done, "promised, but not emitted in an earlier epoch"

    snapshots_at_end: dict[int, Any] = field(default_factory=dict)


def weighted(**weights: int) -> st.SearchStrategy[str]:
    return st.sampled_from([name for name, weight in weights.items() for _ in range(weight)])


actions = st.lists(
    st.tuples(
        weighted(put=5, split=2, merge=2, steps=8, deliver=2, epoch=3, crash=1, fault=1, pause=1),
        st.integers(0, 20),
        st.integers(1, 8),
    ),
    min_size=10,
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(script=actions, partitions=st.integers(1, 4))
def test_nothing_is_lost_or_doubled_and_records_of_a_key_stay_in_order_across_partitions(
    script: list[tuple[str, int, int]], partitions: int
) -> None:
    stream = MemoryStream(2)
    put: dict[str, tuple[Any, str]] = {}
    in_order: dict[str, list[str]] = {key: [] for key in KEYS}
    cluster = Cluster(stream, partitions)
    cluster.start()
    for name, first, second in script:
        if name == "put":
            for number in range(second):
                key = KEYS[(first + number) % len(KEYS)]
                data = f"{key}, record {len(in_order[key])}"
                in_order[key].append(data)
                time = stream.time
                put[data] = (time, stream.put_by_key(key, data))
                stream.time += timedelta(milliseconds=10)
        elif name == "split":
            opened = [shard_id for shard_id, shard in stream.shards.items() if not shard.closed]
            parent = opened[first % len(opened)]
            low, high = stream.shards[parent].hash_range
            if low < high:
                stream.add_shard(parent)
                stream.add_shard(parent)
        elif name == "merge" and stream.neighbours():
            stream.add_shard(*stream.neighbours()[first % len(stream.neighbours())])
        elif name == "steps":
            for _ in range(second):
                cluster.step(first % partitions, put)
        elif name == "deliver":
            cluster.deliver(first % partitions, second)
        elif name == "epoch":
            cluster.end_epoch()
        elif name == "crash":
            cluster.start()
        elif name == "fault":
            if first % 4 == 0:
                stream.iterators.clear()
            elif first % 4 == 1:
                stream.empty_reads += 1
            else:
                stream.faults.append(refusal("InternalFailure", 500))
        elif name == "pause":
            stream.time += timedelta(seconds=first * second)
    stream.faults.clear()
    cluster.start(until_caught_up=True)
    for _ in range(400):
        # Several rounds, so that a notice can arrive in the epoch in which it was sent.
        for number in [*range(partitions)] * 3:
            for _ in range(8):
                cluster.step(number, put)
            for receiver in range(partitions):
                cluster.deliver(receiver, 100)
        cluster.end_epoch()
        if not any(cluster.parts):
            break
    assert not any(cluster.parts), "they end"

    everything = [record.data.decode() for _, _, record in cluster.committed]
    assert sorted(everything) == sorted(put), "each once"
    for key, expected in in_order.items():
        places = [(epoch, part, record) for epoch, part, record in cluster.committed if record.partition_key == key]
        assert [record.data.decode() for _, _, record in places] == expected
        for (epoch, part, _), (later_epoch, later_part, _) in itertools.pairwise(places):
            assert epoch < later_epoch or part == later_part, "items of one epoch have no order between workers"
