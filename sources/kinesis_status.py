"""Looks at a stream from outside a flow: whether it can be read, and how far a committed position is behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from core.markers import Marker
from core.settings import Settings
from sources.kinesis_client import StreamReader, read_client
from sources.kinesis_shards import ShardState

__all__ = ["StreamLag", "check_stream", "lag"]


@dataclass(frozen=True, slots=True)
class StreamLag:
    """How far the tables are behind the stream; `seconds` is the age of the oldest record that none of them has."""

    open_shards: int
    seconds: float


def check_stream(settings: Settings) -> None:
    """Raise MissingError when the stream does not exist, UnreachableError when Kinesis does not answer."""
    StreamReader(read_client(settings), settings.stream).list_shards()


def lag(settings: Settings, committed: Marker) -> StreamLag:
    """Measure the lag with one read per open shard, after the committed position or at the shard's start.

    Duplicates that were dropped move no table's position: a stream that ends in some shows their age.
    """
    reader = StreamReader(read_client(settings), settings.stream)
    shards = [shard for shard in reader.list_shards().shards.values() if not shard.closed]
    now = datetime.now(UTC)
    oldest = now
    for shard in shards:
        sequence_number, _ = committed.positions.get(shard.shard_id, (None, 0))
        iterator = reader.shard_iterator(
            shard.shard_id, ShardState(start="trim-horizon", sequence_number=sequence_number)
        )
        read = reader.read(shard.shard_id, iterator, limit=1)
        if read and read.records:
            oldest = min(oldest, read.records[0].arrival_time)
    return StreamLag(len(shards), max(0.0, (now - oldest).total_seconds()))
