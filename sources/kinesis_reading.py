"""Reads one shard a call ahead of what is handed on: its pace, its faults, and where it stands.

All decisions are made by the worker that owns the partition; only the calls themselves run on threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice

from core.errors import UnreachableError
from core.records import Position, RawRecord
from sources.kinesis_aggregation import MAGIC, unpack
from sources.kinesis_calls import Call, Calls
from sources.kinesis_client import (
    DataLossError,
    Place,
    Read,
    ShardGoneError,
    StreamReader,
    ThrottledError,
    TransientError,
)
from sources.kinesis_figures import MISPLACED, FiguresBoard
from sources.kinesis_shards import Shard, backoff_seconds
from sources.kinesis_state import ShardState

__all__ = ["ShardReading", "TrimmedError", "user_records"]

# Kinesis allows five reads a second and shard.
READ_INTERVAL_SECONDS = 0.2
# How long a shard that stays empty is left alone at most: half of it is what a note then waits on average.
IDLE_SECONDS = 2.0
IDLE_GROWTH = 1.5
# A shard gives 2 MB a second, so a larger read only takes memory; one read may bring 10 MB, whatever is asked for.
READ_BYTES = 2 * 1024 * 1024
FIRST_LIMIT = 1_000
MOST_RECORDS = 10_000
READS_AHEAD = 2


class TrimmedError(DataLossError):
    """Records were removed by the retention period before they were read."""


class ShardReading:
    """The reading of one shard in this run; `state` is how far its records were handed on.

    At most two reads are held, so a shard takes up to 20 MB, and about 4 MB when its records are of like size.
    """

    def __init__(
        self,
        reader: StreamReader,
        calls: Calls,
        shard: Shard,
        state: ShardState,
        *,
        figures: FiguresBoard,
        patience_seconds: float,
        now: float,
        uniform: Callable[[], float],
    ) -> None:
        """`now` is the monotonic time; faults are borne for `patience_seconds`."""
        self.shard = shard
        self.state = state
        self.due = now
        self.caught_up_once = False
        self._reader = reader
        self._calls = calls
        self._figures = figures
        self._patience_seconds = patience_seconds
        self._uniform = uniform
        self._call: Call[Read | None] | None = None
        self._called_at = now
        self._closed_when_called = False
        self._iterator: str | None = None
        self._place = Place.of(state)
        self._expected = state.sequence_number
        self._fetched_until = state.reached
        self._fetched_whole = False
        self._at_end = False
        self._reads: deque[Read] = deque()
        self._handing_on: Iterator[RawRecord] | None = None
        self._seen: deque[RawRecord] = deque()
        self._limit = FIRST_LIMIT
        self._idle_seconds = READ_INTERVAL_SECONDS
        self._faults = 0
        self._faulty_since = now

    @property
    def held_bytes(self) -> int:
        """Size of what was read and not handed on yet."""
        return sum(read.data_bytes for read in self._reads)

    @property
    def ready(self) -> bool:
        """Whether there is something to hand on."""
        return bool(self._reads)

    @property
    def called_at(self) -> float | None:
        """Since when a call is under way; None when there is none."""
        return self._called_at if self._call else None

    @property
    def idle(self) -> bool:
        """Whether the last read found the shard at its end, so that nobody waits for the next one."""
        return self._idle_seconds > READ_INTERVAL_SECONDS

    @property
    def at_horizon(self) -> bool:
        """Whether reading begins at the oldest record; nothing is left to fall back to if that is refused."""
        return self._place.kind == "TRIM_HORIZON" and self._iterator is None

    @property
    def wants_call(self) -> bool:
        """Whether a call is to be made when it is due."""
        return self._call is None and not self._at_end and len(self._reads) < READS_AHEAD

    def start(self, now: float, horizon: datetime | None) -> None:
        """Begin the next read.

        `horizon` is the oldest time that the stream keeps. What was reached before it is looked at again, so that it
        shows whether anything in between is gone.
        """
        if self._may_be_trimmed(horizon) and self._place.kind == "AFTER_SEQUENCE_NUMBER":
            self._expected = self._place.sequence_number
            self._iterator, self._place = None, Place("AT_SEQUENCE_NUMBER", self._expected)
        self.due = now + READ_INTERVAL_SECONDS
        self._called_at = now
        # What a read says of a shard's end holds only if the shard was closed before it.
        self._closed_when_called = self.shard.closed
        iterator, place, limit, shard_id = self._iterator, self._place, self._limit, self.shard.shard_id

        def read() -> Read | None:
            self._iterator = iterator or self._reader.shard_iterator(shard_id, place)
            return self._reader.read(shard_id, self._iterator, limit=limit)

        self._call = self._calls.submit(read)

    def collect(self, now: float, horizon: datetime | None) -> None:
        """Take the result of a call that is done.

        Raises UnreachableError when faults outlast the patience, DataLossError when records are lost; after that,
        `skip_lost` goes on.
        """
        if self._call is None or not self._call.done:
            return
        call, self._call = self._call, None
        try:
            read = call.result()
            if read is None:
                self._iterator = None
                raise TransientError(f"the iterator of shard {self.shard.shard_id} has expired")
        except TransientError as error:
            self._wait_after(error, now)
            return
        except DataLossError as error:
            if self._expected is None or self._may_be_trimmed(horizon) or isinstance(error, ShardGoneError):
                raise
            # Nothing has come for as long as the stream keeps records, so the last one is gone, and no other.
            self._place, self._expected = Place("TRIM_HORIZON"), None
            return
        self._faults = 0
        self._take_in(self._checked(read, horizon), now)

    def see(self, count: int) -> list[RawRecord]:
        """Return up to `count` of the records of the read that is handed on next; nothing changes by that."""
        if self._handing_on is None and self._reads:
            self._handing_on = user_records(self._reads[0].records, self.shard, after=self.state)
        if self._handing_on is not None:
            self._seen.extend(islice(self._handing_on, max(count - len(self._seen), 0)))
        return list(islice(self._seen, count))

    def take(self, count: int) -> list[RawRecord]:
        """Hand on up to `count` user records of what was read; the position moves with them."""
        if not self._reads:
            return []
        read = self._reads[0]
        self.see(count)
        taken = [self._seen.popleft() for _ in range(min(count, len(self._seen)))]
        if taken:
            last = taken[-1]
            self._advance(last.arrival_time)
            self.state = replace(
                self.state,
                sequence_number=last.position.sequence_number,
                subsequence_number=last.position.subsequence_number,
            )
            self._figures.handed_on(self.shard.shard_id, last.position, last.arrival_time)
        if len(taken) < count:
            self._reads.popleft()
            self._handing_on = None
            ended = self._at_end and not self._reads
            self.caught_up_once = self.caught_up_once or read.caught_up
            # Its children may have records that are older than the read that told its end.
            if read.caught_up and not ended:
                self._advance(read.time)
            self.state = replace(self.state, drained=ended)
        return taken

    def skip_lost(self, horizon: datetime | None) -> None:
        """Go on at the oldest record that is left, and say that all before it was reached."""
        self._iterator, self._place, self._expected = None, Place("TRIM_HORIZON"), None
        if self._may_be_trimmed(horizon):
            self._fetched_until = horizon

    def _checked(self, read: Read, horizon: datetime | None) -> Read:
        """See that the last record is still there if reading began at it, and leave out what was read before."""
        if self._expected is None or not (read.records or read.caught_up or read.next_iterator is None):
            return read
        expected, self._expected = self._expected, None
        found = bool(read.records) and read.records[0].position.sequence_number == expected
        if not found and self._may_be_trimmed(horizon):
            raise TrimmedError(
                f"shard {self.shard.shard_id} was read up to {self._fetched_until}, but the stream keeps only what "
                f"came after {horizon}"
            )
        # Of an aggregate, a part may not have been handed on before the flow was restarted.
        if not found or (read.records[0].data.startswith(MAGIC) and not self._fetched_whole):
            return read
        rest = read.records[1:]
        return replace(read, records=rest, caught_up=not rest and not read.behind)

    def _take_in(self, read: Read, now: float) -> None:
        count = len(read.records)
        self._figures.read(
            self.shard.shard_id,
            records=count,
            data_bytes=read.data_bytes,
            millis_behind=round(read.behind.total_seconds() * 1000),
        )
        if count:
            self._fetched_until = read.records[-1].arrival_time
            self._fetched_whole = True
            self._limit = min(max(READ_BYTES * count // max(read.data_bytes, 1), 1), MOST_RECORDS)
            self._idle_seconds = READ_INTERVAL_SECONDS
            self._place = Place("AFTER_SEQUENCE_NUMBER", read.records[-1].position.sequence_number)
        elif read.caught_up:
            self._fetched_until = read.time
            self._idle_seconds = min(self._idle_seconds * IDLE_GROWTH, IDLE_SECONDS)
            self.due = now + self._idle_seconds
        self._iterator = read.next_iterator
        # A closed shard gets no more records, so its end is final also where the service goes on giving iterators.
        self._at_end = read.next_iterator is None or (self._closed_when_called and read.caught_up)
        self._reads.append(read)

    def _wait_after(self, error: TransientError, now: float) -> None:
        if self._faults == 0:
            self._faulty_since = now
        self._faults += 1
        if isinstance(error, ThrottledError):
            self._figures.throttled(self.shard.shard_id)
        if now - self._faulty_since >= self._patience_seconds:
            raise UnreachableError(f"{error} ({self._faults} attempts)") from error
        self.due = max(self.due, now + backoff_seconds(self._faults, self._uniform()))

    def _advance(self, time: datetime) -> None:
        if self.state.reached is None or self.state.reached < time:
            self.state = replace(self.state, reached=time)

    def _may_be_trimmed(self, horizon: datetime | None) -> bool:
        return horizon is not None and self._fetched_until is not None and self._fetched_until < horizon


def user_records(records: Iterable[RawRecord], shard: Shard, *, after: ShardState) -> Iterator[RawRecord]:
    """Give the user records of a read that come after a shard's state, those of aggregated records one by one.

    Sub-sequence numbers count from 0 in each aggregate. An aggregate with a user record that belongs to another shard
    is dropped, as the Kinesis Client Library does: its producer sends them again.
    """
    start = after.start if isinstance(after.start, datetime) else None
    done = after.sequence_number
    for record in records:
        sequence_number = record.position.sequence_number
        if done is not None and sequence_number < done:
            continue
        # AT_TIMESTAMP is sent in whole seconds: what came earlier within that second is not ours.
        if start is not None and record.arrival_time < start:
            continue
        aggregate = unpack(record.data) if record.data.startswith(MAGIC) else None
        if aggregate is None:
            if sequence_number != done:
                yield record
            continue
        if not aggregate.belongs_to(shard.hash_range):
            MISPLACED.labels(shard.shard_id).inc()
            continue
        first = after.subsequence_number + 1 if sequence_number == done else 0
        for number, part in enumerate(aggregate):
            if number >= first:
                yield RawRecord(
                    part.data,
                    part.partition_key,
                    record.arrival_time,
                    Position(record.position.shard_id, sequence_number, number),
                )
