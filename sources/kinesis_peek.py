"""Looks at a stream's newest or oldest records from outside a flow; moves nothing that a flow goes by."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import TypeVar

from core.errors import UnreachableError
from core.records import Position, RawRecord
from core.settings import Settings, StartPosition
from sources.kinesis_client import Listing, Place, StreamReader, TransientError, read_client
from sources.kinesis_reading import MOST_RECORDS, READ_INTERVAL_SECONDS, user_records
from sources.kinesis_shards import Shard, backoff_seconds
from sources.kinesis_state import ShardStart, ShardState

__all__ = ["peek"]

# How far to look back for the newest records: as little as it takes, because a stream can only be read forward.
LOOKS_BACK = tuple(timedelta(seconds=seconds) for seconds in (2, 15, 120, 1_200, 3 * 3_600, 24 * 3_600))

X = TypeVar("X")


def peek(
    settings: Settings,
    position: StartPosition,
    *,
    count: int,
    reader: StreamReader | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[RawRecord, ...]:
    """Return up to `count` user records in order of arrival: the newest for "latest", else the first at a position.

    Of a sequence number only its own shard is read. Aggregated records are unpacked. Raises MissingError when the
    stream does not exist or refuses the position, UnreachableError when Kinesis does not answer for
    `settings.retry_timeout`.
    """
    looking = _Peeking(reader or StreamReader(read_client(settings), settings.stream), settings.retry_timeout, sleep)
    listing = looking.patiently(looking.reader.list_shards)
    if position == "latest":
        return looking.newest(listing, count)
    return looking.first(listing, position, count)


class _Peeking:
    def __init__(self, reader: StreamReader, patience: timedelta, sleep: Callable[[float], None]) -> None:
        self.reader = reader
        self._patience_seconds = patience.total_seconds()
        self._sleep = sleep

    def patiently(self, call: Callable[[], X]) -> X:
        """Make a call, and again while its faults may pass."""
        faults, waited = 0, 0.0
        while True:
            try:
                return call()
            except TransientError as error:
                faults += 1
                if waited >= self._patience_seconds:
                    raise UnreachableError(f"{error} ({faults} attempts)") from error
                wait = max(backoff_seconds(faults, random.random()), READ_INTERVAL_SECONDS)  # noqa: S311 - jitter
                waited += wait
                self._sleep(wait)

    def newest(self, listing: Listing, count: int) -> tuple[RawRecord, ...]:
        for back in (*LOOKS_BACK, listing.retention):
            state = ShardState(listing.time - back)
            found = [
                record
                for shard in listing.shards.values()
                for record in deque(self._records(shard, state, until=listing.time), maxlen=count)
            ]
            if len(found) >= count or back >= listing.retention:
                break
        return _in_order(found)[-count:]

    def first(self, listing: Listing, start: ShardStart, count: int) -> tuple[RawRecord, ...]:
        only = start.shard_id if isinstance(start, Position) else None
        found: list[RawRecord] = []
        for shard in listing.shards.values():
            if only in (None, shard.shard_id):
                found += islice(self._records(shard, ShardState(start), until=listing.time), count)
        return _in_order(found)[:count]

    def _records(self, shard: Shard, state: ShardState, *, until: datetime) -> Iterator[RawRecord]:
        """Read a shard to its end, or to records that came after `until`: a busy stream has no end."""
        place = Place.of(state)
        iterator: str | None = None
        while True:
            iterator = iterator or self.patiently(partial(self.reader.shard_iterator, shard.shard_id, place))
            read = self.patiently(partial(self.reader.read, shard.shard_id, iterator, limit=MOST_RECORDS))
            if read is None:
                iterator = None
                continue
            yield from user_records(read.records, shard, after=state)
            if read.records:
                place = Place("AFTER_SEQUENCE_NUMBER", read.records[-1].position.sequence_number)
            past = bool(read.records) and read.records[-1].arrival_time > until
            if read.caught_up or past or read.next_iterator is None or (shard.closed and not read.records):
                return
            iterator = read.next_iterator
            self._sleep(READ_INTERVAL_SECONDS)


def _in_order(records: Iterable[RawRecord]) -> tuple[RawRecord, ...]:
    return tuple(sorted(records, key=lambda record: (record.arrival_time, record.position)))
