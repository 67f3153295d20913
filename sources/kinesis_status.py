"""Looks at a stream from outside a flow: whether it can be read, and how far a committed position is behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from core.markers import Marker
from core.settings import Settings
from sources.kinesis_client import Place, StreamReader, read_client

__all__ = ["ShardLag", "StreamLag", "check_stream", "lag"]


@dataclass(frozen=True, slots=True)
class ShardLag:
    """How far the tables are in one shard: the position that they have, and the age of the oldest they lack."""

    shard_id: str
    sequence_number: str | None
    subsequence_number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamLag:
    """How far the tables are behind the stream; `seconds` is the age of the oldest record that none of them has."""

    open_shards: int
    seconds: float
    shards: tuple[ShardLag, ...]
    """The open shards."""


def check_stream(settings: Settings) -> None:
    """Raise MissingError when the stream does not exist, UnreachableError when Kinesis does not answer."""
    StreamReader(read_client(settings), settings.stream).list_shards()


def lag(settings: Settings, committed: Marker) -> StreamLag:
    """Measure the lag with one read per open shard, after the committed position or at the shard's start.

    Duplicates that were dropped move no table's position: a stream that ends in some shows their age.
    """
    reader = StreamReader(read_client(settings), settings.stream)
    now = datetime.now(UTC)
    shards = []
    for shard_id, shard in sorted(reader.list_shards().shards.items()):
        if shard.closed:
            continue
        sequence, subsequence = committed.positions.get(shard_id, (None, 0))
        place = Place("TRIM_HORIZON") if sequence is None else Place("AFTER_SEQUENCE_NUMBER", sequence)
        read = reader.read(shard_id, reader.shard_iterator(shard_id, place), limit=1)
        oldest = read.records[0].arrival_time if read and read.records else now
        seconds = max(0.0, (now - oldest).total_seconds())
        shards.append(ShardLag(shard_id, None if sequence is None else str(sequence), subsequence, seconds))
    return StreamLag(len(shards), max((shard.seconds for shard in shards), default=0.0), tuple(shards))
