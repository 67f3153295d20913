"""Looks up why an event failed, in the table of failures."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any

from pyiceberg.expressions import And, BooleanExpression, EqualTo, GreaterThanOrEqual, LessThanOrEqual
from pyiceberg.table import Table

from core.settings import Settings
from sinks.iceberg_catalog import load, load_table, reaching
from sinks.iceberg_history import STEP_OF_LATE_EVENTS
from sinks.iceberg_tables import BRONZE_FAILURES

__all__ = ["FailureReader"]

FOLLOW_SECONDS = 1.0
_COLUMNS = ("step", "error", "message", "failed_at")


class FailureReader:
    """Finds failures for a process that asks often; safe to share between threads.

    The table's newest version is loaded once a second at most, and of its files only those are read that have
    arrivals of the time in question.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loading = threading.Lock()
        self._table: Table | None = None
        self._loaded_at = 0.0

    def find(self, event_id: str, *, arrived_from: datetime, arrived_until: datetime) -> dict[str, Any] | None:
        """Return step, error and message of the newest failure of an event that arrived within these times, if any.

        An event that only came too late for its window did not fail. Raises MissingError before `pkm init`,
        UnreachableError when catalog or bucket do not answer.
        """
        wanted = And(
            _compare(EqualTo, "event_id", event_id),
            _compare(GreaterThanOrEqual, "arrival_time", arrived_from.isoformat()),
            _compare(LessThanOrEqual, "arrival_time", arrived_until.isoformat()),
        )
        table = self._newest()
        with reaching(self._settings):
            rows = table.scan(row_filter=wanted, selected_fields=_COLUMNS).to_arrow().to_pylist()
        failed = [row for row in rows if row["step"] != STEP_OF_LATE_EVENTS]
        return max(failed, key=lambda row: row["failed_at"], default=None)

    def _newest(self) -> Table:
        with self._loading:
            if self._table is None or time.monotonic() - self._loaded_at >= FOLLOW_SECONDS:
                self._table = load_table(load(self._settings), self._settings, BRONZE_FAILURES.identifier)
                self._loaded_at = time.monotonic()
            return self._table


def _compare(operation: Any, column: str, value: str) -> BooleanExpression:
    # The library's own annotations know only its internal, keyword form.
    comparison: BooleanExpression = operation(column, value)
    return comparison
