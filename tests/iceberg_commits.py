"""Pending commits as tests make them, and what stands between a committer and its catalog."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pyiceberg.table import Table

from core.markers import Marker
from core.records import Position
from core.settings import Settings
from sinks import iceberg_catalog
from sinks.iceberg_commit import Committer, PendingCommit, Retries
from sinks.iceberg_epoch import Epoch
from sinks.iceberg_files import put_files
from sinks.iceberg_owner import Owner
from sinks.iceberg_rows import Change
from sinks.iceberg_tables import BRONZE_FAILURES, SILVER_METRICS, TableSpec

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
QUICK = Retries(attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.02)


def load(settings: Settings, identifier: str = "bronze.failures") -> Table:
    return iceberg_catalog.load(settings).load_table(identifier)


def failure(number: int) -> Change:
    position = Position("shard", number)
    row = {
        "event_id": None,
        "step": "parse",
        "error": "ValueError",
        "message": str(number),
        "arrival_time": NOON,
        "shard_id": "shard",
        "sequence_number": str(number),
        "subsequence_number": 0,
        "s3_key": None,
        "payload": b"",
        "failed_at": NOON,
    }
    return Change(row, position=position)


def window(source_type: str, count: int) -> Change:
    row = {
        "window_start": NOON,
        "window_end": NOON,
        "source_type": source_type,
        "count": count,
        "avg_words": 1.0,
        "event_ids": ["a"],
    }
    return Change(row, key=(NOON, source_type))


def pending(
    settings: Settings, changes: list[Change], *, after: Marker | None = None, spec: TableSpec = BRONZE_FAILURES
) -> PendingCommit:
    epoch = Epoch(load(settings, spec.identifier), spec, flush_bytes=1 << 20)
    for change in changes:
        epoch.add(change)
    sealed, _ = epoch.seal(after or Marker())
    assert sealed is not None
    put_files(load(settings, spec.identifier), sealed.contents)
    return sealed.pending


def messages(settings: Settings) -> list[int]:
    found = iceberg_catalog.scan(settings, "bronze.failures", columns=["message"])
    return sorted(int(message) for message in found["message"].to_pylist())


class Faults:
    """Stands between a committer and its catalog: does what a fault of the network does, then gets out of the way."""

    def __init__(self, table: Table, *, before: list[Exception] | None = None, after: list[Exception] | None = None):
        self._commit = table.catalog.commit_table
        self._before, self._after = before or [], after or []
        self.calls = 0
        table.catalog.commit_table = self.commit_table  # type: ignore[method-assign]

    def commit_table(self, *arguments: Any) -> Any:
        self.calls += 1
        if self._before:
            raise self._before.pop(0)
        response = self._commit(*arguments)
        if self._after:
            raise self._after.pop(0)
        return response


def owned(settings: Settings, identifier: str = "bronze.failures", flow: str = "knowledge") -> Committer:
    spec = SILVER_METRICS if identifier == "silver.metrics" else BRONZE_FAILURES
    table = load(settings, identifier)
    return Committer(table, key_columns=spec.key_columns, retries=QUICK, owner=Owner(flow))


def metrics(settings: Settings) -> dict[str, int]:
    rows = iceberg_catalog.scan(settings, "silver.metrics").to_pylist()
    assert len(rows) == len({row["source_type"] for row in rows})
    return {row["source_type"]: row["count"] for row in rows}
