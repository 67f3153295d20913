"""One epoch of one table: gathers changes, makes data files of them, and ends as a pending commit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa  # type: ignore[import-untyped]
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from core.markers import Marker
from core.records import Position
from sinks.iceberg_commit import PendingCommit
from sinks.iceberg_files import EncodedFiles, encode_rows, put_files, store_file, without_keys, write_table
from sinks.iceberg_rows import Change, Key, Row
from sinks.iceberg_tables import TableSpec

__all__ = ["Epoch", "SealedEpoch", "last_per_key", "lowest_positions", "superseded"]

# What a row costs beside its texts; only decides when a large epoch is written early.
ROW_BYTES = 512


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of the epoch that are in files already."""

    files: tuple[DataFile, ...]
    keys: frozenset[Key]


class Epoch:
    """Gathers the changes of one epoch in order of arrival; for a key the last one counts."""

    def __init__(self, table: Table, spec: TableSpec, *, flush_bytes: int) -> None:
        """Rows are written to the object store whenever about `flush_bytes` are gathered."""
        self._table = table
        self._spec = spec
        self._flush_bytes = flush_bytes
        self._changes: list[Change] = []
        self._gathered_bytes = 0
        self._parts: list[_Part] = []
        self._positions: list[Position] = []

    def add(self, change: Change) -> None:
        """Take a change. Raises UnreachableError when gathered rows have to be written and can't be."""
        if change.position is not None:
            self._positions.append(change.position)
        if change.row is None and not self._spec.key_columns:
            return
        self._changes.append(change)
        self._gathered_bytes += _estimated_bytes(change.row)
        if self._gathered_bytes >= self._flush_bytes:
            encoded, keys = self._encode_gathered()
            put_files(self._table, encoded.contents)
            self._end_part(encoded.files, keys)

    def seal(self, marker: Marker) -> tuple[SealedEpoch | None, Marker]:
        """Take no more changes; gives what it leaves, None when nothing changes, and the marker after `marker`.

        Raises UnreachableError when rows that are in files already have to be written anew and can't be.
        """
        if not self._changes and not self._parts:
            return None, marker.advanced(self._positions)
        marker = marker.advanced(self._positions, commit_number=marker.commit_number + 1)
        encoded, keys = self._encode_gathered()
        self._end_part(encoded.files, keys)
        pending = PendingCommit(
            table=self._spec.identifier,
            data_files=tuple(store_file(file) for part in self._without_superseded_rows() for file in part),
            keys=tuple({key for part in self._parts for key in part.keys}),
            marker=marker,
            starts=lowest_positions(self._positions),
        )
        return SealedEpoch(pending, encoded.contents), marker

    def _encode_gathered(self) -> tuple[EncodedFiles, frozenset[Key]]:
        if self._spec.key_columns:
            rows_by_key = last_per_key(self._changes)
            rows = [row for row in rows_by_key.values() if row is not None]
            return encode_rows(self._table, rows), frozenset(rows_by_key)
        rows = [change.row for change in self._changes if change.row is not None]
        return encode_rows(self._table, rows), frozenset()

    def _end_part(self, files: tuple[DataFile, ...], keys: frozenset[Key]) -> None:
        self._parts.append(_Part(files, keys))
        self._changes = []
        self._gathered_bytes = 0

    def _without_superseded_rows(self) -> Iterable[Sequence[DataFile]]:
        # The last part, which is not stored yet, has no later one.
        for part, stale in zip(self._parts, superseded([part.keys for part in self._parts]), strict=True):
            if stale and part.files:
                kept = without_keys(self._table, part.files, self._spec.key_columns, stale)
                yield write_table(self._table, kept)
            else:
                yield part.files


@dataclass(frozen=True, slots=True)
class SealedEpoch:
    """What an epoch leaves: the commit that it is to be, and contents of its files that are not stored yet."""

    pending: PendingCommit
    contents: Mapping[str, pa.Buffer]


def last_per_key(changes: Iterable[Change]) -> dict[Key, Row | None]:
    """Give each key's last row, None where the key was deleted last."""
    return {change.key: change.row for change in changes}


def superseded(parts: Sequence[Collection[Key]]) -> list[set[Key]]:
    """Tell for each part which of its keys a later part has too."""
    later: set[Key] = set()
    result: list[set[Key]] = []
    for keys in reversed(parts):
        result.append(later.intersection(keys))
        later.update(keys)
    return result[::-1]


def lowest_positions(positions: Iterable[Position]) -> dict[str, tuple[int, int]]:
    """Give the lowest (sequence, subsequence) per shard."""
    lowest: dict[str, tuple[int, int]] = {}
    for position in positions:
        place = (position.sequence_number, position.subsequence_number)
        lowest[position.shard_id] = min(place, lowest.get(position.shard_id, place))
    return lowest


def _estimated_bytes(row: Row | None) -> int:
    return ROW_BYTES + sum(len(value) for value in (row or {}).values() if isinstance(value, str | bytes))
