"""Counts of every store, lag behind the stream, age of the newest snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core.recovery.store import SnapshotStore
from core.settings import Settings
from flows import knowledge
from sinks import iceberg_catalog, lance, slatedb
from sources import kinesis_status

__all__ = ["Status", "counts", "status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the stores hold and how far the flow is; `rows` by store, in the order of the dataflow."""

    rows: dict[str, int]
    stream: str
    open_shards: int
    lag_seconds: float
    snapshots: int
    execution: int | None
    snapshot_age_seconds: float | None

    def health(self) -> dict[str, Any]:
        """Everything but the counts, for a screen."""
        return {
            "stream": f"{self.stream}, {self.open_shards} open shards",
            "behind": f"{self.lag_seconds:.0f} s",
            "snapshots": f"{self.snapshots}, execution {self.execution}" if self.snapshots else "none",
            "newest snapshot": "-" if self.snapshot_age_seconds is None else f"{self.snapshot_age_seconds:.0f} s ago",
        }


def counts(settings: Settings) -> dict[str, int]:
    """Rows of every Iceberg table, chunks and notes with vectors, notes with metadata."""
    rows = {name: iceberg_catalog.row_count(settings, name) for name in sorted(iceberg_catalog.table_names(settings))}
    if settings.enrich != "none":
        rows["vectors (chunks)"] = lance.count_chunks(settings)
        rows["vectors (notes)"] = lance.count_notes(settings)
    rows["metadata (notes)"] = slatedb.count_notes(settings)
    return rows


def status(settings: Settings) -> Status:
    """Read the state of every store; needs no running flow.

    The lag is the age of the oldest record that no table has yet. Raises UnreachableError or MissingError.
    """
    committed = iceberg_catalog.marker(settings, "bronze.notes").joined(
        iceberg_catalog.marker(settings, "bronze.failures")
    )
    lag = kinesis_status.lag(settings, committed)
    manifest = SnapshotStore(settings, flow=knowledge.FLOW).manifest()
    newest = manifest.newest if manifest else None
    return Status(
        rows=counts(settings),
        stream=settings.stream,
        open_shards=lag.open_shards,
        lag_seconds=lag.seconds,
        snapshots=len(manifest.snapshots) if manifest else 0,
        execution=manifest.execution if manifest else None,
        snapshot_age_seconds=(datetime.now(UTC) - newest.created_at).total_seconds() if newest else None,
    )
