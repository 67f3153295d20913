"""A bounded part of a stream, read under positions of its own: what a replay reads.

Times include the first and exclude the last, sequence numbers include both. A sequence number is a place in one
shard: a range that names one is about that shard alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from core.errors import SettingsError
from core.records import Position, RawRecord
from sources.kinesis_client import Listing, Read, StreamReader
from sources.kinesis_state import ShardStart

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = ["RangeReader", "StreamRange", "bounded", "cut"]


@dataclass(frozen=True, slots=True)
class StreamRange:
    """From `start` up to `until`, at most to the end that the stream had at `ended_at`.

    Positions are named `name/SHARD`, so that no marker of another reading of the same records covers them.
    """

    name: str
    start: ShardStart
    until: datetime | Position
    ended_at: datetime

    @property
    def shard_id(self) -> str | None:
        """The one shard that the range is about; None for all."""
        return next((bound.shard_id for bound in (self.start, self.until) if isinstance(bound, Position)), None)


def bounded(name: str, *, start: ShardStart, until: datetime | Position | None, now: datetime) -> StreamRange:
    """Make the range from `start` to `until`, which is the stream's end as of `now` when None or later.

    Raises SettingsError when there can be nothing between the two.
    """
    last = now if until is None or (isinstance(until, datetime) and until > now) else until
    if isinstance(start, Position) and isinstance(last, Position):
        if start.shard_id != last.shard_id:
            raise SettingsError(
                f"--from is in shard {start.shard_id}, --until in {last.shard_id}: a range of sequence numbers lies"
                " in one shard; use timestamp:… for a range of all shards"
            )
        empty = last < start
    else:
        empty = isinstance(start, datetime) and isinstance(last, datetime) and last <= start
    if empty:
        raise SettingsError("--until lies before --from: there is nothing between the two")
    return StreamRange(name, start, last, now)


def cut(read: Read, bounds: StreamRange) -> Read:
    """Return what of an answer lies before the end of the range, under the range's positions.

    A shard that has reached the end has no next iterator; it is caught up only when it held nothing more after
    the range was made.
    """
    kept: list[RawRecord] = []
    ended = False
    for record in read.records:
        ended = _beyond(record, bounds)
        if ended:
            break
        kept.append(record)
        ended = isinstance(bounds.until, Position) and record.position.sequence_number == bounds.until.sequence_number
        if ended:
            break
    return replace(
        read,
        records=tuple(replace(record, position=_own(record.position, bounds)) for record in kept),
        next_iterator=None if ended else read.next_iterator,
        caught_up=read.caught_up and read.time >= bounds.ended_at,
    )


class RangeReader(StreamReader):
    """Reads a stream as if it had nothing but the range."""

    def __init__(
        self,
        client: KinesisClient,
        stream: str,
        bounds: StreamRange,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(client, stream, now=now)
        self._bounds = bounds

    def list_shards(self) -> Listing:
        """List the range's shards."""
        listing = super().list_shards()
        only = self._bounds.shard_id
        if only is None:
            return listing
        return replace(listing, shards={name: shard for name, shard in listing.shards.items() if name == only})

    def read(self, shard_id: str, iterator: str, *, limit: int) -> Read | None:
        """Read at most `limit` records, none beyond the range."""
        read = super().read(shard_id, iterator, limit=limit)
        return read and cut(read, self._bounds)


def _beyond(record: RawRecord, bounds: StreamRange) -> bool:
    if isinstance(bounds.until, Position):
        return record.position.sequence_number > bounds.until.sequence_number
    return record.arrival_time >= bounds.until


def _own(position: Position, bounds: StreamRange) -> Position:
    return replace(position, shard_id=f"{bounds.name}/{position.shard_id}")
