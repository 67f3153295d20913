"""Position arithmetic: what a sink has committed, shard by shard.

A sink stores with its rows the highest position per shard (its marker). An epoch is a contiguous range of every
shard, so a marker covers exactly the rows of all epochs up to it; after a restart, rows at or below it are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import orjson

from core.records import Position

__all__ = ["Marker"]


@dataclass(frozen=True, slots=True)
class Marker:
    """The highest committed (sequence, subsequence) per shard, and the number of the commit that wrote it."""

    positions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    commit_number: int = 0

    def covers(self, position: Position) -> bool:
        """Tell whether the row at `position` is already committed."""
        highest = self.positions.get(position.shard_id)
        return highest is not None and (position.sequence_number, position.subsequence_number) <= highest

    def advanced(self, positions: Iterable[Position], *, commit_number: int | None = None) -> Marker:
        """Return a marker that also covers `positions`; shards not among them are carried forward.

        A replay's positions have shards of their own (`REPLAY/SHARD`); those of the next replay take their place.
        """
        positions = tuple(positions)
        replay = next((name for name in map(_replay_of, (one.shard_id for one in positions)) if name), None)
        merged = {
            shard_id: place
            for shard_id, place in self.positions.items()
            if replay is None or _replay_of(shard_id) in ("", replay)
        }
        for position in positions:
            place = (position.sequence_number, position.subsequence_number)
            merged[position.shard_id] = max(place, merged.get(position.shard_id, place))
        return Marker(merged, self.commit_number if commit_number is None else commit_number)

    def joined(self, other: Marker) -> Marker:
        """Return the marker that covers what either covers."""
        merged = dict(self.positions)
        for shard_id, place in other.positions.items():
            merged[shard_id] = max(place, merged.get(shard_id, place))
        return Marker(merged, max(self.commit_number, other.commit_number))

    def to_json(self) -> str:
        """Write as JSON; sequence numbers have up to 56 digits, so they are strings."""
        shards = {shard: [str(sequence), sub] for shard, (sequence, sub) in sorted(self.positions.items())}
        return orjson.dumps({"commit": self.commit_number, "shards": shards}).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Marker:
        """Read what `to_json` wrote."""
        value = orjson.loads(text)
        return cls(
            {shard: (int(sequence), sub) for shard, (sequence, sub) in value["shards"].items()},
            value["commit"],
        )


def _replay_of(shard_id: str) -> str:
    return shard_id.rpartition("/")[0]
