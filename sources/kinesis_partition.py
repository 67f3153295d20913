"""One partition of the Kinesis source: which shard it reads next, what it emits, and what it promises.

`sources.kinesis` describes the source that is made of such partitions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from bytewax.inputs import StatefulSourcePartition

from core import stopping
from core.errors import MissingError, UnreachableError
from core.records import RawRecord, Watermark
from core.telemetry import RECORDS
from sources.kinesis_client import DataLossError, Listing, Read, ShardGoneError, StreamReader, TransientError
from sources.kinesis_shards import (
    PartitionState,
    ShardState,
    admit,
    backoff_seconds,
    low_watermark,
    pin_latest,
    readable,
)

__all__ = ["KinesisPartition"]

# Kinesis allows five reads a second and shard.
READ_INTERVAL_SECONDS = 0.2
# A read brings at most 10 MB, whatever is asked for.
READ_RECORDS = 1_000
IDLE_SECONDS = 1.0
LIST_SECONDS = 20.0
# About 15 s of waiting in the mean; fewer before the first answer, so that a wrong endpoint is told at once.
ATTEMPTS = 9
FIRST_ATTEMPTS = 5
WATERMARK_STEP = timedelta(seconds=1)

_log = structlog.get_logger(module=__name__)


@dataclass(slots=True)
class _Reading:
    """The reading of one shard in this run; nothing of it outlives the run."""

    due: float
    iterator: str | None = None
    idle_seconds: float = READ_INTERVAL_SECONDS
    faults: int = 0
    reached: datetime | None = None
    caught_up_once: bool = False


class KinesisPartition(StatefulSourcePartition[RawRecord | Watermark, Mapping[str, Any]]):
    """Reads the shards of one partition in turn, at most one call to Kinesis for each `next_batch`.

    A read that brought more than `batch_records` is handed on in pieces, so that slow steps behind never get so much
    at once that they hold up the epoch.
    """

    def __init__(
        self,
        reader: StreamReader,
        state: PartitionState,
        *,
        partition: int,
        pin: bool,
        batch_records: int,
        until_caught_up: bool,
        on_data_loss: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._reader = reader
        self._state = state
        self._partition = partition
        self._pin = pin
        self._batch_records = batch_records
        self._until_caught_up = until_caught_up
        self._on_data_loss = on_data_loss
        self._now = now
        self._monotonic = monotonic
        self._uniform = uniform
        self._listing: Listing | None = None
        self._listing_due = monotonic()
        self._listing_faults = 0
        self._answered = False
        self._readings: dict[str, _Reading] = {}
        self._held: tuple[str, _Reading, Read] | None = None
        self._promise: datetime | None = None
        self._promised: datetime | None = None

    def next_batch(self) -> list[RawRecord | Watermark]:
        """Return a watermark that is due, else records of one read; both may be none; none when stopped."""
        if stopping.requested():
            raise StopIteration
        if self._promise is not None:
            self._promised, self._promise = self._promise, None
            return [Watermark(self._partition, self._state.partitions, self._promised)]
        if self._held is not None:
            return list(self._hand_on(*self._held))
        if self._finished():
            raise StopIteration
        now = self._monotonic()
        if self._listing is None or now >= self._listing_due:
            self._list()
            return []
        shard_id = min(self._readings, key=lambda name: self._readings[name].due, default=None)
        if shard_id is None or self._readings[shard_id].due > now:
            return []
        return list(self._read(shard_id, self._readings[shard_id]))

    def next_awake(self) -> datetime | None:
        """Return when the next call to Kinesis is due."""
        if self._promise is not None or self._held is not None or self._finished():
            return None
        dues = [reading.due for reading in self._readings.values()] if self._listing else []
        # A promise is made at any time, so nobody sleeps for long.
        due = min([self._listing_due, *dues]) - self._monotonic()
        return self._now() + timedelta(seconds=min(max(due, 0.0), IDLE_SECONDS))

    def snapshot(self) -> Mapping[str, Any]:
        """Return how far each shard was emitted, and note what may be promised in the next epoch."""
        reached = [reading.reached for reading in self._readings.values()]
        promise = low_watermark(reached, self._listing.time if self._listing else None)
        if promise is not None and (self._promised is None or promise - self._promised >= WATERMARK_STEP):
            self._promise = promise
        return self._state.to_snapshot()

    def _finished(self) -> bool:
        return (
            self._until_caught_up
            and self._listing is not None
            and self._monotonic() < self._listing_due
            and all(reading.caught_up_once for reading in self._readings.values())
        )

    def _list(self) -> None:
        try:
            listing = self._reader.list_shards()
        except TransientError as error:
            self._listing_faults += 1
            self._listing_due = self._monotonic() + self._wait_after(self._listing_faults, error)
            return
        self._answered = True
        self._listing_faults = 0
        self._listing_due = self._monotonic() + LIST_SECONDS
        if self._pin and isinstance(self._state.start, datetime):
            pinned = pin_latest(self._state.start, listing.server_time)
            self._state = PartitionState(self._state.stream, self._state.partitions, pinned)
        self._pin = False
        self._listing = listing
        self._state = admit(self._state, listing.shards, self._partition)
        self._choose()

    def _choose(self) -> None:
        """Start to read the shards that have become readable, stop with those that are drained."""
        now = self._monotonic()
        listed = self._listing.shards if self._listing else {}
        self._readings = {
            shard_id: self._readings.get(shard_id) or _Reading(due=now) for shard_id in readable(self._state, listed)
        }

    def _read(self, shard_id: str, reading: _Reading) -> tuple[RawRecord, ...]:
        reading.due = self._monotonic() + READ_INTERVAL_SECONDS
        try:
            if reading.iterator is None:
                reading.iterator = self._reader.shard_iterator(shard_id, self._state.shards[shard_id])
            read = self._reader.read(shard_id, reading.iterator, limit=READ_RECORDS)
            if read is None:
                reading.iterator = None
                raise TransientError(f'the iterator of shard {shard_id} of stream "{self._state.stream}" has expired')
        except TransientError as error:
            reading.faults += 1
            reading.due += self._wait_after(reading.faults, error)
            return ()
        except DataLossError as error:
            self._lost(shard_id, error)
            return ()
        reading.faults = 0
        return self._hand_on(shard_id, reading, read)

    def _hand_on(self, shard_id: str, reading: _Reading, read: Read) -> tuple[RawRecord, ...]:
        """Emit the first piece of what was read and hold the rest; the position moves with what is emitted."""
        piece = replace(read, records=read.records[: self._batch_records])
        rest = read.records[self._batch_records :]
        self._held = (shard_id, reading, replace(read, records=rest)) if rest else None
        return self._taken(shard_id, reading, piece, complete=not rest)

    def _taken(self, shard_id: str, reading: _Reading, read: Read, *, complete: bool) -> tuple[RawRecord, ...]:
        shard = self._state.shards[shard_id]
        records = read.records
        sequence_number = shard.sequence_number
        if records:
            sequence_number = records[-1].position.sequence_number
            reading.reached = records[-1].arrival_time
            reading.idle_seconds = READ_INTERVAL_SECONDS
            if isinstance(shard.start, datetime):
                start = shard.start
                # AT_TIMESTAMP is sent in whole seconds: what came earlier within that second is not ours.
                records = tuple(record for record in records if record.arrival_time >= start)
        elif read.caught_up:
            reading.reached = read.time
            reading.caught_up_once = True
            reading.idle_seconds = min(reading.idle_seconds * 1.5, IDLE_SECONDS)
            reading.due = self._monotonic() + reading.idle_seconds
        reading.iterator = read.next_iterator
        # A closed shard gets no more records, so its end is final also where the service goes on giving iterators.
        closed = (
            self._listing is not None and shard_id in self._listing.shards and self._listing.shards[shard_id].closed
        )
        drained = complete and (read.next_iterator is None or (closed and read.caught_up))
        self._state = self._state.with_shard(shard_id, ShardState(shard.start, sequence_number, drained))
        if drained:
            # Its children may not be known yet; until they are, the last listing holds the watermark back.
            self._listing_due = self._monotonic()
            self._choose()
        RECORDS.inc(len(records))
        return records

    def _lost(self, shard_id: str, error: DataLossError) -> None:
        gone = isinstance(error, ShardGoneError)
        shard = self._state.shards[shard_id]
        at_horizon = shard.sequence_number is None and shard.start == "trim-horizon"
        if self._on_data_loss == "fail" or (at_horizon and not gone):
            raise MissingError(
                f"{error}: start with PKM_START=trim-horizon and no snapshot, or set PKM_ON_DATA_LOSS=warn"
            ) from error
        _log.warning("records of the stream are lost", shard=shard_id, reason=str(error))
        self._state = self._state.with_shard(shard_id, ShardState("trim-horizon", None, drained=gone))
        self._choose()

    def _wait_after(self, faults: int, error: TransientError) -> float:
        attempts = ATTEMPTS if self._answered else FIRST_ATTEMPTS
        if faults >= attempts:
            raise UnreachableError(f"{error} ({faults} attempts)") from error
        return backoff_seconds(faults, self._uniform())
