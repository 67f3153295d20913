"""Rows that come again after a restart: tells those that a table has from those that its marker passed over.

A marker says that an epoch was committed, not that each of its records made a row: one that failed then, and whose
dead letter was lost with the process, may succeed now. So what the marker covers is looked up before it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from pyiceberg.table import FileScanTask, Table

from core.records import Position
from sinks.iceberg_files import key_array, keys_as_array, read_files
from sinks.iceberg_history import ARRIVAL, POSITION_COLUMNS, RecordIndex, row_position
from sinks.iceberg_rows import Change, Key
from sinks.iceberg_tables import TableSpec
from sinks.versions import is_repeated

__all__ = ["Repetitions"]


class Repetitions:
    """Looks up what comes again in the table as it was when the run began."""

    def __init__(self, table: Table, spec: TableSpec) -> None:
        self._table = table
        self._columns = spec.key_columns
        self._index = RecordIndex(table)
        self._versions: pa.Table | None = None
        self._latest: dict[Key, Position | None] = {}

    def news(self, changes: Sequence[Change]) -> list[Change]:
        """Return those of `changes` that the table lacks, in order.

        A table without keys lacks a row when it has none of that record; one with keys, when it has no version of the
        key or an older one. They come back without a position, since the marker covers them already.
        """
        lacking = self._lacking_versions(changes) if self._columns else self._lacking_records(changes)
        return [replace(change, position=None) for change in lacking]

    def forget(self) -> None:
        """Free memory; what is asked later is read again."""
        self._versions = None

    def _lacking_records(self, changes: Sequence[Change]) -> list[Change]:
        with_rows = [(row_position(change.row), change) for change in changes if change.row is not None]
        held = self._index.holding({place: change.row[ARRIVAL] for place, change in with_rows if change.row})
        return [change for place, change in with_rows if place not in held]

    def _lacking_versions(self, changes: Sequence[Change]) -> list[Change]:
        self._look_up({change.key for change in changes} - self._latest.keys())
        lacking = []
        for change in changes:
            if change.position is None or is_repeated(
                change.position, self._latest[change.key], leaves_nothing=change.row is None
            ):
                continue
            self._latest[change.key] = change.position
            lacking.append(change)
        return lacking

    def _look_up(self, keys: set[Key]) -> None:
        if not keys:
            return
        self._latest.update(dict.fromkeys(keys))
        if self._versions is None:
            columns = (*self._columns, *POSITION_COLUMNS)
            tasks = [FileScanTask(task.file) for task in self._table.scan(selected_fields=columns).plan_files()]
            self._versions = read_files(self._table, tasks, self._table.schema().select(*columns))
        wanted = keys_as_array(self._table, self._columns, keys)
        rows = self._versions.filter(pc.is_in(key_array(self._versions, self._columns), value_set=wanted))
        for row in rows.to_pylist():
            self._latest[tuple(row[name] for name in self._columns)] = row_position(row)
