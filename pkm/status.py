"""Counts of every store, lag behind the stream, age of the newest snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from core import aws
from core.recovery.store import SnapshotStore
from core.settings import Settings
from flows import knowledge
from sinks import iceberg_catalog, lance, slatedb
from sources import kinesis_figures, kinesis_status

__all__ = ["ShardStatus", "Status", "counts", "status"]

DIGITS_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStatus:
    """One open shard: how far the tables are, and how the newest run of the flow reads it, if any has told.

    `sequence_number` is the last one that the tables have; counts are of the run that wrote them at `told_at`.
    """

    shard_id: str
    lag_seconds: float
    sequence_number: str | None
    subsequence_number: int
    told_at: datetime | None = None
    millis_behind_latest: int | None = None
    records: int | None = None
    data_bytes: int | None = None
    reads: int | None = None
    empty_reads: int | None = None
    throttles: int | None = None
    read_sequence_number: str | None = None

    def row(self) -> dict[str, Any]:
        """Return the columns of a screen."""
        number = self.sequence_number
        return {
            "shard": self.shard_id.removeprefix("shardId-0000").lstrip("0") or "0",
            "behind s": round(self.lag_seconds),
            "read behind ms": self.millis_behind_latest,
            "records": self.records,
            "bytes": self.data_bytes,
            "reads": self.reads,
            "empty": self.empty_reads,
            "throttled": self.throttles,
            "position": number if number is None or len(number) <= DIGITS_SHOWN else f"…{number[-DIGITS_SHOWN:]}",
        }


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
    shards: tuple[ShardStatus, ...] = ()

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
    told = kinesis_figures.published(aws.object_store(settings), flow=knowledge.FLOW)
    return Status(
        rows=counts(settings),
        stream=settings.stream,
        open_shards=lag.open_shards,
        lag_seconds=lag.seconds,
        snapshots=len(manifest.snapshots) if manifest else 0,
        execution=manifest.execution if manifest else None,
        snapshot_age_seconds=(datetime.now(UTC) - newest.created_at).total_seconds() if newest else None,
        shards=tuple(_shard_status(shard, told.get(shard.shard_id)) for shard in lag.shards),
    )


def _shard_status(
    lag: kinesis_status.ShardLag, told: tuple[datetime, kinesis_figures.ShardFigures] | None
) -> ShardStatus:
    known = ShardStatus(
        shard_id=lag.shard_id,
        lag_seconds=lag.seconds,
        sequence_number=lag.sequence_number,
        subsequence_number=lag.subsequence_number,
    )
    if told is None:
        return known
    told_at, figures = told
    return replace(
        known,
        told_at=told_at,
        millis_behind_latest=figures.millis_behind_latest,
        records=figures.records,
        data_bytes=figures.data_bytes,
        reads=figures.reads,
        empty_reads=figures.empty_reads,
        throttles=figures.throttles,
        read_sequence_number=figures.sequence_number,
    )
