"""What the bronze tables hold of the stream: which records they have, and the content that came with them.

A restart reads records again. What became of one of them must not change by that: what failed stays failed, and what
is stored is processed once more with the content that it had.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from pyiceberg.table import FileScanTask, Table

from core.records import Event, Position, RawRecord
from core.settings import Settings
from sinks.iceberg_catalog import load, load_table, reaching
from sinks.iceberg_files import read_files
from sinks.iceberg_tables import BRONZE_FAILURES, BRONZE_NOTES

__all__ = ["ARRIVAL", "POSITION_COLUMNS", "Outcomes", "RecordIndex", "StreamHistory", "row_position"]

ARRIVAL = "arrival_time"
POSITION_COLUMNS = ("shard_id", "sequence_number", "subsequence_number")
# What is read again lies close together; shards differ by no more than this in most cases.
PLANNED_BEFORE = timedelta(minutes=10)
FILES_IN_MEMORY = 64
# The document of such a row is in bronze.notes; only its window missed it.
STEP_OF_LATE_EVENTS = "windows"

_NEVER = datetime.min.replace(tzinfo=UTC)
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _File:
    task: FileScanTask
    earliest: datetime
    latest: datetime

    def overlaps(self, earliest: datetime, latest: datetime) -> bool:
        return self.latest >= earliest and self.earliest <= latest


class RecordIndex:
    """Tells which records of the stream a table holds, as of the snapshot that it was loaded with.

    Data files are found by the arrival times in the table's metadata; the positions of those that were used last are
    kept in memory. Not safe to share between threads.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._planned_from: datetime | None = None
        self._planned_until = _NEVER
        self._files: list[_File] = []
        self._rows: OrderedDict[str, dict[Position, str | None]] = OrderedDict()

    def holding(self, arrivals: Mapping[Position, datetime]) -> dict[Position, str | None]:
        """Give those of the records, by position with their arrival, that have a row, and the row's step if any."""
        found: dict[Position, str | None] = {}
        if not arrivals or self._table.current_snapshot() is None:
            return found
        for file in self._overlapping(min(arrivals.values()), max(arrivals.values())):
            rows = self._rows_of(file)
            found.update((position, rows[position]) for position in arrivals.keys() & rows.keys())
        return found

    def value(self, record: RawRecord, column: str) -> Any:
        """Read one column of a record's row; None without a row."""
        for file in self._overlapping(record.arrival_time, record.arrival_time):
            if record.position in self._rows_of(file):
                for row in self._read(file, (*POSITION_COLUMNS, column)).to_pylist():
                    if row_position(row) == record.position:
                        return row[column]
        return None

    def _overlapping(self, earliest: datetime, latest: datetime) -> list[_File]:
        if self._planned_from is None or earliest < self._planned_from:
            self._planned_from = earliest - PLANNED_BEFORE
            self._files = [self._file(task) for task in self._plan(self._planned_from)]
            self._planned_until = max((file.latest for file in self._files), default=_NEVER)
        if earliest > self._planned_until:
            # The stream has left behind what the table knew of it; this is the steady case.
            return []
        return [file for file in self._files if file.overlaps(earliest, latest)]

    def _plan(self, since: datetime) -> Iterable[FileScanTask]:
        condition = f"{ARRIVAL} >= '{since.isoformat()}'"
        if not self._table.spec().is_unpartitioned():
            # Nothing is processed before it arrives: whole days of manifests need not be read.
            condition += f" and processing_date >= '{since.date().isoformat()}'"
        return self._table.scan(row_filter=condition).plan_files()

    def _file(self, task: FileScanTask) -> _File:
        field_id = self._table.schema().find_field(ARRIVAL).field_id
        lower, upper = task.file.lower_bounds or {}, task.file.upper_bounds or {}
        return _File(
            task,
            _time(lower[field_id]) if field_id in lower else _NEVER,
            _time(upper[field_id]) if field_id in upper else _FOR_EVER,
        )

    def _rows_of(self, file: _File) -> dict[Position, str | None]:
        path = file.task.file.file_path
        if path not in self._rows:
            columns = [*POSITION_COLUMNS, *(["step"] if "step" in self._table.schema().column_names else [])]
            rows = self._read(file, columns).to_pylist()
            self._rows[path] = {row_position(row): row.get("step") for row in rows}
            while len(self._rows) > FILES_IN_MEMORY:
                self._rows.popitem(last=False)
        self._rows.move_to_end(path)
        return self._rows[path]

    def _read(self, file: _File, columns: Sequence[str]) -> pa.Table:
        # Without the plan's residual filter: a file is read whole or not at all.
        return read_files(self._table, [FileScanTask(file.task.file)], self._table.schema().select(*columns))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What earlier runs have made of some records; a record that is in neither set is open."""

    stored: frozenset[Position]
    failed: frozenset[Position]


class StreamHistory:
    """The outcomes of the stream's records, as the bronze tables had them when a run first asked.

    Raises MissingError for a table that was not created, UnreachableError when catalog or bucket do not answer.
    Not safe to share between threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._indexes: tuple[RecordIndex, RecordIndex] | None = None

    def outcomes(self, events: Sequence[Event]) -> Outcomes:
        """Tell what became of the records of `events`."""
        notes, failures = self._loaded()
        with reaching(self._settings):
            arrivals = {event.position: event.record.arrival_time for event in events}
            stored = notes.holding(arrivals)
            failed = failures.holding({place: arrivals[place] for place in arrivals.keys() - stored.keys()})
        return Outcomes(
            frozenset(stored), frozenset(place for place, step in failed.items() if step != STEP_OF_LATE_EVENTS)
        )

    def content(self, event: Event) -> bytes | None:
        """Return the content that bronze.notes keeps of an event; None when it has none."""
        notes, _ = self._loaded()
        with reaching(self._settings):
            content: str | None = notes.value(event.record, "content")
        return None if content is None else content.encode()

    def _loaded(self) -> tuple[RecordIndex, RecordIndex]:
        if self._indexes is None:
            catalog = load(self._settings)
            notes, failures = (
                RecordIndex(load_table(catalog, self._settings, spec.identifier))
                for spec in (BRONZE_NOTES, BRONZE_FAILURES)
            )
            self._indexes = (notes, failures)
        return self._indexes


def row_position(row: dict[str, Any]) -> Position:
    """Return where in the stream a row comes from."""
    return Position(row["shard_id"], int(row["sequence_number"]), row["subsequence_number"])


def _time(bound: bytes) -> datetime:
    # Iceberg's single-value encoding of a timestamp: microseconds since 1970, 8 bytes, little-endian.
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int.from_bytes(bound, "little", signed=True))
