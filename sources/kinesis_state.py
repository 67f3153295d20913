"""What a source partition remembers between runs: how far each of its shards was read, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from core.errors import SnapshotError
from core.records import Position

__all__ = ["Incarnation", "PartitionState", "ShardStart", "ShardState", "refuse_other_start"]

STATE_VERSION = 2

ShardStart = Literal["trim-horizon"] | datetime | Position
"""Where a shard of which nothing was emitted is read from; a position is included, and about its own shard only."""


@dataclass(frozen=True, slots=True)
class ShardState:
    """How far a shard is read: after a position, or from `start` when nothing of it was emitted yet.

    `reached` is the time up to which all its records were emitted; None while that is not known.
    """

    start: ShardStart
    sequence_number: int | None = None
    subsequence_number: int = 0
    reached: datetime | None = None
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Incarnation:
    """What tells a stream from another that had its name before."""

    arn: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What a source partition knows about its shards: everything that a restart needs.

    `start` is where shards of the first listing begin ("latest" is pinned to the time of the first start, so that a
    restart before the first record loses nothing); `incarnation` is the stream's at the first listing.
    """

    stream: str
    partitions: int
    start: ShardStart
    incarnation: Incarnation | None = None
    shards: Mapping[str, ShardState] = field(default_factory=dict)

    @property
    def listed(self) -> bool:
        """Whether the first listing was made."""
        return self.incarnation is not None

    def with_shard(self, shard_id: str, state: ShardState) -> PartitionState:
        """Return the state with one shard's place replaced."""
        return replace(self, shards={**self.shards, shard_id: state})

    def to_snapshot(self) -> dict[str, Any]:
        """Return plain values for Bytewax's recovery store; nothing in them changes afterwards."""
        incarnation = self.incarnation
        return {
            "version": STATE_VERSION,
            "stream": self.stream,
            "partitions": self.partitions,
            "start": _start_text(self.start),
            "incarnation": (incarnation.arn, incarnation.created_at.isoformat()) if incarnation else None,
            "shards": tuple(
                (
                    shard_id,
                    _start_text(shard.start),
                    shard.sequence_number,
                    shard.subsequence_number,
                    shard.reached.isoformat() if shard.reached else None,
                    shard.drained,
                )
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
        incarnation = snapshot["incarnation"]
        return cls(
            stream=stream,
            partitions=partitions,
            start=_read_start(snapshot["start"]),
            incarnation=Incarnation(incarnation[0], _read_time(incarnation[1])) if incarnation else None,
            shards={
                shard_id: ShardState(
                    _read_start(start), sequence, subsequence, _read_time(reached) if reached else None, drained
                )
                for shard_id, start, sequence, subsequence, reached, drained in snapshot["shards"]
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


def _start_text(start: ShardStart) -> str:
    if isinstance(start, Position):
        return f"sequence:{start.shard_id}:{start.sequence_number}"
    return start if isinstance(start, str) else start.isoformat()


def _read_start(text: str) -> ShardStart:
    if text.startswith("sequence:"):
        shard_id, _, number = text.removeprefix("sequence:").rpartition(":")
        return Position(shard_id, int(number))
    return "trim-horizon" if text == "trim-horizon" else _read_time(text)


def _read_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
