"""Arithmetic of shards without I/O: who reads which, where reading goes on, what a partition may promise.

Shards come and go while partitions are fixed, because Bytewax refuses a snapshot that names a partition it does
not know. So partition `n` of `N` reads every shard whose number is `n` modulo `N`, and its state is per shard.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from core.records import Position
from sources.kinesis_state import Incarnation, PartitionState, ShardStart, ShardState

__all__ = [
    "Shard",
    "admit",
    "backoff_seconds",
    "begun",
    "foreign_children",
    "low_watermark",
    "partition_names",
    "partition_of",
    "pin_latest",
    "readable",
    "unbounded",
    "waits_in_vain",
]

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
SERVER_RESOLUTION = timedelta(seconds=1)
LONGEST_START = timedelta(minutes=1)

_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as the stream lists it; `closed` when it was split or merged and gets no more records.

    `hash_range` has the first and the last hash key of its records.
    """

    shard_id: str
    parents: tuple[str, ...] = ()
    closed: bool = False
    hash_range: tuple[int, int] = (0, 2**128 - 1)


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


def admit(
    state: PartitionState,
    listing: Mapping[str, Shard],
    partition: int,
    *,
    incarnation: Incarnation,
    unseen_at: datetime | None = None,
    horizon: datetime | None = None,
) -> PartitionState:
    """Return the state after a listing of the stream's shards.

    Shards of the first listing begin at the flow's start. Later ones are children of shards that were read, so they
    begin at their own beginning, and hold nothing older than `unseen_at`, the time of a listing without them. A
    drained shard that the stream does not list is forgotten when what it held is older than `horizon`, the
    stream's retention: earlier it may only be missing from this listing, and would be read again with the next. One
    that is not drained stays, so that reading it reports the loss.
    """
    shards = {
        shard_id: shard
        for shard_id, shard in state.shards.items()
        if shard_id in listing or not (shard.drained and _older(shard.reached, horizon))
    }
    for shard_id in sorted(listing):
        if partition_of(shard_id, state.partitions) == partition and shard_id not in shards:
            shards[shard_id] = (
                ShardState("trim-horizon", reached=unseen_at)
                if state.listed
                else _first(state.start, listing[shard_id])
            )
    return replace(state, incarnation=state.incarnation or incarnation, shards=shards)


def readable(
    state: PartitionState, listing: Mapping[str, Shard], released: Collection[str] = frozenset()
) -> tuple[str, ...]:
    """Return the shards that may be read now: not drained, and all their parents are.

    `released` names the shards of other partitions of which it is known that all their records went through the
    flow in earlier epochs. A parent that the stream does not list has nothing left to wait for. So versions of a note
    stay in order across splits and merges, whichever partitions the shards belong to.
    """
    return tuple(
        shard_id
        for shard_id, shard in sorted(state.shards.items())
        if not shard.drained and not any(_pending(state, listing, released, shard_id))
    )


def begun(state: PartitionState, listing: Mapping[str, Shard], shard_id: str) -> ShardState:
    """Return a shard's state as reading it begins: what it holds is newer than what its parents held."""
    shard = state.shards[shard_id]
    parents = listing[shard_id].parents if shard_id in listing else ()
    times = [state.shards[parent].reached for parent in parents if parent in state.shards]
    known = [time for time in times if time is not None]
    return replace(shard, reached=max(known)) if known and shard.reached is None else shard


def foreign_children(state: PartitionState, listing: Mapping[str, Shard], partition: int) -> set[tuple[str, int]]:
    """Return the drained shards whose children belong to other partitions, each with the partition to be told."""
    return {
        (parent, owner)
        for shard_id, shard in listing.items()
        if (owner := partition_of(shard_id, state.partitions)) != partition
        for parent in shard.parents
        if parent in state.shards and state.shards[parent].drained
    }


def waits_in_vain(
    state: PartitionState, listing: Mapping[str, Shard], released: Collection[str], ended: Collection[int]
) -> set[str]:
    """Return the shards that can't become readable in this run: those behind a shard of a partition that has ended.

    Only a flow that stops by itself has partitions that end; what they leave is for the next run.
    """
    vain: set[str] = set()
    for shard_id in sorted(state.shards):  # a child's number is higher than its parents'
        if any(
            parent in vain or (parent not in state.shards and partition_of(parent, state.partitions) in ended)
            for parent in _pending(state, listing, released, shard_id)
        ):
            vain.add(shard_id)
    return vain


def unbounded(
    state: PartitionState, listing: Mapping[str, Shard], released: Collection[str]
) -> Iterator[datetime | None]:
    """Give for each shard that waits for other partitions alone the time that its records can't be older than.

    A shard that waits for one of this partition needs none: what it holds arrived after what that one holds.
    """
    for shard_id, shard in state.shards.items():
        pending = [] if shard.drained else list(_pending(state, listing, released, shard_id))
        if pending and not any(parent in state.shards for parent in pending):
            yield shard.reached


def low_watermark(reached: Iterable[datetime | None], listed_at: datetime | None) -> datetime | None:
    """Return the time up to which a partition has emitted everything, or None while it can't tell.

    `reached` has for each shard the time up to which it was read (None before that is known). A shard that was not
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


def _pending(
    state: PartitionState, listing: Mapping[str, Shard], released: Collection[str], shard_id: str
) -> Iterator[str]:
    """Give the parents that a shard still has to wait for."""
    for parent in listing[shard_id].parents if shard_id in listing else ():
        if parent in state.shards:
            if not state.shards[parent].drained:
                yield parent
        elif parent in listing and parent not in released:
            yield parent


def _first(start: ShardStart, shard: Shard) -> ShardState:
    if isinstance(start, Position) and start.shard_id != shard.shard_id:
        return ShardState("trim-horizon")
    # A shard with parents was made later than the start, or it would not be known how much later.
    return ShardState(start, reached=start if isinstance(start, datetime) and not shard.parents else None)


def _older(time: datetime | None, horizon: datetime | None) -> bool:
    return time is not None and horizon is not None and time < horizon
