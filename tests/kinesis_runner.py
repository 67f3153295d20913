"""Calls a source partition as the engine does, against a stream in memory that has the real service's rules."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

from core.records import Position, RawRecord, Watermark
from memory_stream import NOON, InlineCalls, MemoryStream, shard_name
from sources.kinesis_calls import Call, Calls
from sources.kinesis_client import StreamReader
from sources.kinesis_notices import Board, Notice
from sources.kinesis_partition import KinesisPartition
from sources.kinesis_state import PartitionState, ShardStart

SHARD = shard_name(0)
EPOCH = timedelta(seconds=1)


class HangingCalls(InlineCalls):
    """Never finishes the calls for one shard."""

    def __init__(self, stream: MemoryStream, *, hang: str) -> None:
        self._stream = stream
        self._hang = hang

    def submit(self, work: Any) -> Any:
        call = Call(work)
        if work.__closure__ and any(cell.cell_contents == self._hang for cell in work.__closure__):
            return call
        call.run()
        return call


class Runner:
    """Calls a partition as Bytewax does: when it is due, with a snapshot at the end of each epoch."""

    def __init__(
        self,
        stream: MemoryStream,
        *,
        start: ShardStart = "trim-horizon",
        pin: bool = False,
        snapshot: Any = None,
        batch_records: int = 3,
        until_caught_up: bool = False,
        on_data_loss: str = "fail",
        partition: int = 0,
        partitions: int = 1,
        board: Board | None = None,
        calls: Calls | None = None,
        engine_epoch: timedelta = EPOCH,
    ) -> None:
        self.stream = stream
        self.board = board or Board()
        self.board.begin(partition)
        state = (
            PartitionState.from_snapshot(snapshot, stream="notes", partitions=partitions)
            if snapshot
            else PartitionState("notes", partitions, start)
        )
        self.part = KinesisPartition(
            StreamReader(stream, "notes", now=lambda: stream.time),  # type: ignore[arg-type]
            state,
            partition=partition,
            pin=pin,
            batch_records=batch_records,
            until_caught_up=until_caught_up,
            on_data_loss=on_data_loss,  # type: ignore[arg-type]
            patience=timedelta(seconds=30),
            epoch=EPOCH,
            calls=calls or InlineCalls(),
            board=self.board,
            ahead=lambda records: self.shown.append([record.position for record in records]),
            now=lambda: stream.time,
            monotonic=lambda: (stream.time - NOON).total_seconds(),
            uniform=lambda: 0.5,
        )
        self.records: list[RawRecord] = []
        self.shown: list[list[Position]] = []
        """What was announced as coming next, at each batch."""
        self.watermarks: list[Watermark] = []
        self.ended = False
        self._epoch_began = stream.time
        self._engine_epoch = engine_epoch

    @property
    def data(self) -> list[str]:
        return [record.data.decode() for record in self.records]

    def step(self) -> list[RawRecord | Watermark | Notice]:
        awake = self.part.next_awake()
        # A call takes time, also when nothing is due.
        self.stream.time = max(awake or self.stream.time, self.stream.time) + timedelta(milliseconds=1)
        try:
            batch = self.part.next_batch()
        except StopIteration:
            self.ended = True
            return []
        self.records += [item for item in batch if isinstance(item, RawRecord)]
        self.watermarks += [item for item in batch if isinstance(item, Watermark)]
        for notice in batch:
            if isinstance(notice, Notice):
                self.board.post(notice)
        if self.stream.time - self._epoch_began >= self._engine_epoch:
            self.epoch()
        return batch

    def run(self, seconds: float) -> None:
        end = self.stream.time + timedelta(seconds=seconds)
        while self.stream.time < end and not self.ended:
            self.step()

    def finish(self) -> None:
        for _ in range(1000):
            self.step()
            if self.ended:
                return
        raise AssertionError("the partition did not end")

    def epoch(self) -> Any:
        self._epoch_began = self.stream.time
        return pickle.loads(pickle.dumps(self.part.snapshot()))
