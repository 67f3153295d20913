"""Tells source partitions, wherever they run, which shards the others have read to their end.

A child shard may only be read when all records of its parents went through the flow, and a parent may belong to a
partition on another worker or in another process, with which there is no memory in common. Bytewax has no way back
from a step to a source, but its workers are connected: a notice is an item of the dataflow, routed by the partition
that it is for to a sink of the same partitions. Bytewax gives equally named partitions of two steps to the same
worker, so the sink finds itself in the process of the partition, and leaves the notice on the process's board.

Nothing of this is stored. A partition that resumes says again what its own restored state says, so that a notice
of a run whose state was lost can't let a child run ahead of a parent that is being read once more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from sources.kinesis_shards import partition_names

__all__ = ["Board", "Notice", "NoticeSink"]


@dataclass(frozen=True, slots=True)
class Notice:
    """`sender` says to `receiver`: all of `shard_id` was emitted; or, without a shard: I have ended."""

    receiver: int
    sender: int
    shard_id: str | None = None


class Board:
    """What the partitions of one process were told in this run of the flow."""

    def __init__(self) -> None:
        self._built: dict[int, int] = {}
        self._drained: dict[int, frozenset[str]] = {}
        self._ended: dict[int, frozenset[int]] = {}

    def begin(self, partition: int) -> None:
        """Say that a partition starts on this thread; if it did before, then what an earlier run was told is void."""
        if partition in self._built:
            self._built, self._drained, self._ended = {}, {}, {}
        self._built[partition] = threading.get_ident()

    def on_one_worker(self, partitions: int) -> bool:
        """Whether all of so many partitions started on one thread, so that no other worker reads."""
        return len(self._built) == partitions and len(set(self._built.values())) == 1

    def post(self, notice: Notice) -> None:
        """Leave a notice for its receiver."""
        receiver = notice.receiver
        if notice.shard_id is None:
            self._ended[receiver] = self.ended(receiver) | {notice.sender}
        else:
            self._drained[receiver] = self.drained(receiver) | {notice.shard_id}

    def drained(self, partition: int) -> frozenset[str]:
        """Return the shards of other partitions of which `partition` was told that they are emitted."""
        return self._drained.get(partition, frozenset())

    def ended(self, partition: int) -> frozenset[int]:
        """Return the partitions of which `partition` was told that they have ended."""
        return self._ended.get(partition, frozenset())


class _NoticePartition(StatefulSinkPartition[Notice, None]):
    def __init__(self, board: Board) -> None:
        self._board = board

    def write_batch(self, values: list[Notice]) -> None:
        for notice in values:
            self._board.post(notice)

    def snapshot(self) -> None:
        return None


class NoticeSink(FixedPartitionedSink[Notice, None]):
    """Leaves notices on the board of the process that has the receiver; takes (receiver's name, notice) pairs."""

    def __init__(self, board: Board, partitions: int) -> None:
        self._board = board
        self._names = partition_names(partitions)
        self._places: Sequence[str] = sorted(self._names)

    def list_parts(self) -> list[str]:
        """Name the partitions, as the source does."""
        return self._names

    def part_fn(self, item_key: str) -> int:
        """Return the place of the receiver among all sorted partitions."""
        return self._places.index(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _NoticePartition:  # noqa: ARG002
        """Build the partition; its state is nothing."""
        return _NoticePartition(self._board)
