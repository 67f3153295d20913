"""Arithmetic of shards without I/O: who reads which, where reading goes on, what a partition may promise.

Shards come and go while partitions are fixed, because Bytewax refuses a snapshot that names a partition it does
not know. So partition `n` of `N` reads every shard whose number is `n` modulo `N`, and its state is per shard.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from core.errors import SnapshotError
from core.records import Position

__all__ = [
    "PartitionState",
    "Shard",
    "ShardStart",
    "ShardState",
    "admit",
    "backoff_seconds",
    "low_watermark",
    "partition_names",
    "partition_of",
    "pin_latest",
    "readable",
    "refuse_other_start",
]

STATE_VERSION = 1
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
SERVER_RESOLUTION = timedelta(seconds=1)
LONGEST_START = timedelta(minutes=1)

ShardStart = Literal["trim-horizon"] | datetime | Position
"""Where a shard of which nothing was emitted is read from; a position is included, and about its own shard only."""

_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the stream lists it; `closed` when it was split or merged and gets no more records."""

    shard_id: str
    parents: tuple[str, ...] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ShardState:
    """How far a shard is read: after `sequence_number`, or from `start` when nothing of it was emitted yet."""

    start: ShardStart
    sequence_number: int | None = None
    drained: bool = False


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What a source partition knows about its shards: everything that a restart needs.

    `start` is where shards of the first listing begin ("latest" is pinned to the time of the first start, so that a
    restart before the first record loses nothing); `listed` tells whether that listing was made.
    """

    stream: str
    partitions: int
    start: ShardStart
    listed: bool = False
    shards: Mapping[str, ShardState] = field(default_factory=dict)

    def with_shard(self, shard_id: str, state: ShardState) -> PartitionState:
        """Return the state with one shard's place replaced."""
        return replace(self, shards={**self.shards, shard_id: state})

    def to_snapshot(self) -> dict[str, Any]:
        """Return plain values for Bytewax's recovery store; nothing in them changes afterwards."""
        return {
            "version": STATE_VERSION,
            "stream": self.stream,
            "partitions": self.partitions,
            "start": _start_text(self.start),
            "listed": self.listed,
            "shards": tuple(
                (shard_id, _start_text(shard.start), shard.sequence_number, shard.drained)
                for shard_id, shard in sorted(self.shards.items())
            ),
        }

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any], *, stream: str, partitions: int) -> PartitionState:
        """Read what `to_snapshot` wrote.

        Raises SnapshotError when it was made by another version, of another stream or for another number of
        partitions: read on from it, records would be lost or doubled.
        """
        if snapshot.get("version") != STATE_VERSION:
            raise SnapshotError(
                f"the snapshot's source state has version {snapshot.get('version')}, this program reads "
                f"{STATE_VERSION}: resume with the release that wrote it"
            )
        if snapshot["stream"] != stream:
            raise SnapshotError(
                f'the snapshot is of stream "{snapshot["stream"]}", not "{stream}": '
                f"set PKM_STREAM={snapshot['stream']} or start without the snapshot"
            )
        if snapshot["partitions"] != partitions:
            raise SnapshotError(
                f"the snapshot was made with {snapshot['partitions']} source partitions, not {partitions}: "
                f"set PKM_SOURCE_PARTITIONS={snapshot['partitions']}"
            )
        return cls(
            stream=stream,
            partitions=partitions,
            start=_read_start(snapshot["start"]),
            listed=snapshot["listed"],
            shards={
                shard_id: ShardState(_read_start(start), sequence_number, drained)
                for shard_id, start, sequence_number, drained in snapshot["shards"]
            },
        )


def refuse_other_start(state: PartitionState, start: ShardStart | Literal["latest"], *, shown: str) -> None:
    """Raise SnapshotError when the setting names another start (`shown`) than the one that the snapshot began at.

    The default asks for nothing, and "latest" was pinned to a time when the flow first started.
    """
    pinned = start == "latest" and isinstance(state.start, datetime)
    if start not in ("trim-horizon", state.start) and not pinned:
        raise SnapshotError(
            f"PKM_START={shown}, but the flow has a snapshot, which began at {_start_text(state.start)}: unset "
            "PKM_START to go on from the snapshot, or set PKM_FORCE_START=1 to leave it and start there"
        )


def partition_names(partitions: int) -> list[str]:
    """Name the source partitions, `partition-000` and up; the names are recovery keys and never change."""
    return [f"partition-{index:03d}" for index in range(partitions)]


def partition_of(shard_id: str, partitions: int) -> int:
    """Return the partition that reads a shard: its number modulo `partitions`, or a stable hash of an odd id."""
    number = _NUMBER.search(shard_id)
    if number:
        return int(number.group(1)) % partitions
    return int.from_bytes(hashlib.sha256(shard_id.encode()).digest()[:8], "big") % partitions


def pin_latest(local: datetime, server: datetime | None) -> datetime:
    """Return the time that "latest" stands for: the local clock's at the start, unless the server's disagrees.

    The server tells whole seconds, so it replaces the finer local time only when that lies in its future, which
    Kinesis refuses, or further back than a start takes.
    """
    if server is None or server - LONGEST_START <= local < server + SERVER_RESOLUTION:
        return local
    return server


def admit(state: PartitionState, listing: Mapping[str, Shard], partition: int) -> PartitionState:
    """Return the state after a listing of the stream's shards.

    Shards of the first listing begin at the flow's start; later ones are children of shards that were read, so they
    begin at their own beginning. A drained shard that the stream no longer lists is forgotten; one that is not
    drained stays, so that reading it reports the loss.
    """
    shards = {shard_id: shard for shard_id, shard in state.shards.items() if shard_id in listing or not shard.drained}
    start: ShardStart = "trim-horizon" if state.listed else state.start
    for shard_id in sorted(listing):
        if partition_of(shard_id, state.partitions) == partition and shard_id not in shards:
            elsewhere = isinstance(start, Position) and start.shard_id != shard_id
            shards[shard_id] = ShardState("trim-horizon" if elsewhere else start)
    return replace(state, listed=True, shards=shards)


def readable(state: PartitionState, listing: Mapping[str, Shard]) -> tuple[str, ...]:
    """Return the shards that may be read now: not drained, and no parent that this partition still has to drain.

    So versions of a note stay in order across a split or merge within the partition. A parent that is read by
    another partition does not hold its child back: then order across the two is not guaranteed, only that nothing
    is lost.
    """
    return tuple(
        shard_id
        for shard_id, shard in sorted(state.shards.items())
        if not shard.drained and not any(_pending(state, parent) for parent in _parents(listing, shard_id))
    )


def low_watermark(reached: Iterable[datetime | None], listed_at: datetime | None) -> datetime | None:
    """Return the time up to which a partition has emitted everything, or None while it can't tell.

    `reached` has for each readable shard the time up to which it was read (None before its first read). Shards that
    wait for a parent need no entry: what they hold arrived after what their parent holds. A shard that was not
    listed yet can only hold records that arrived after the last listing, so the promise ends there too.
    """
    if listed_at is None:
        return None
    lowest = listed_at
    for time in reached:
        if time is None:
            return None
        lowest = min(lowest, time)
    return lowest


def backoff_seconds(faults: int, uniform: float) -> float:
    """Return the wait after the `faults`-th fault in a row: full jitter, `uniform` in [0, 1).

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    # The exponent is bounded because a float overflows at 2 ** 1024.
    return float(min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(faults - 1, 32)) * uniform)


def _parents(listing: Mapping[str, Shard], shard_id: str) -> tuple[str, ...]:
    return listing[shard_id].parents if shard_id in listing else ()


def _pending(state: PartitionState, shard_id: str) -> bool:
    shard = state.shards.get(shard_id)
    return shard is not None and not shard.drained


def _start_text(start: ShardStart) -> str:
    if isinstance(start, Position):
        return f"sequence:{start.shard_id}:{start.sequence_number}"
    return start if isinstance(start, str) else start.isoformat()


def _read_start(text: str) -> ShardStart:
    if text.startswith("sequence:"):
        shard_id, _, number = text.removeprefix("sequence:").rpartition(":")
        return Position(shard_id, int(number))
    return "trim-horizon" if text == "trim-horizon" else datetime.fromisoformat(text).astimezone(UTC)
