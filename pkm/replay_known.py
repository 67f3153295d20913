"""Takes the flow's stores over for a replay, and reads which versions of which notes they hold.

A flow that was killed in the middle of an epoch may have written a note's new version to one store and not yet to
another. The flow completes it when it starts again, but only where it is missing; a replay that put the old version
back would stay. So a note is replayed only when all stores that the flow has written agree about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from core.errors import MissingError
from core.markers import Marker
from core.records import Position
from core.settings import Settings
from flows import knowledge
from operators.known import Known, digest
from operators.windows import window_start
from sinks import iceberg, iceberg_catalog, iceberg_tables, lance, metadata_keys, metadata_store, slatedb
from sources.kinesis_range import StreamRange

__all__ = ["Held", "known_tables", "take_over"]

BATCH_ROWS = 65_536
_PLACE = ("shard_id", "sequence_number", "subsequence_number")
TABLES = (
    iceberg_tables.BRONZE_NOTES,
    iceberg_tables.BRONZE_FAILURES,
    iceberg_tables.SILVER_NOTES,
    iceberg_tables.SILVER_METRICS,
)


@dataclass(frozen=True, slots=True)
class Held:
    """Stores that were taken over; what the live flow never wrote (made anew, say) is only to be filled.

    `metadata` has an entry for each part in order, `vectors` is about the whole dataset.
    """

    metadata: tuple[bool, ...]
    vectors: bool


def take_over(settings: Settings) -> Held:
    """Make every older execution of the flow unable to write, and tell which stores the flow has written.

    Raises FencedError when a newer one has claimed the flow, MissingError before `pkm init`, CommitError and
    UnreachableError.
    """
    for table in TABLES:
        iceberg.take_over(settings, table, flow=knowledge.FLOW)
    parts = []
    for name in metadata_store.part_names(settings):
        part = slatedb.MetadataPart(settings, name)
        try:
            parts.append(_written_live(part.marker))
        finally:
            part.close()
    return Held(tuple(parts), _take_vectors_over(settings))


def _take_vectors_over(settings: Settings) -> bool:
    try:
        part = lance.VectorPart(settings)
    except MissingError:
        # Without enrichment there need be no dataset; a run that needs it has been refused by now.
        return False
    try:
        return _written_live(part.marker)
    finally:
        part.close()


def known_tables(settings: Settings, bounds: StreamRange, held: Held) -> tuple[Known, int]:
    """Read what the tables know, and how many notes they do not agree about.

    Raises MissingError before `pkm init`, UnreachableError.
    """
    current, unsettled = _current(settings, held)
    length = settings.window_length
    since = None
    if isinstance(bounds.start, datetime):
        # All of the first window counts, also what arrived before the range.
        since = f"arrival_time >= '{window_start(bounds.start, length).isoformat()}'"
    bronze = iceberg_catalog.scan(
        settings,
        "bronze.notes",
        columns=("event_id", *_PLACE, "arrival_time", "source_type"),
        row_filter=since,
    )
    counted = set()
    windows: dict[tuple[datetime, str], int] = {}
    for batch in bronze.to_batches(max_chunksize=BATCH_ROWS):
        for row in batch.to_pylist():
            counted.add(digest(row["event_id"], _position(row)))
            window = (window_start(row["arrival_time"], length), row["source_type"])
            windows[window] = windows.get(window, 0) + 1
    return Known(current, frozenset(counted), windows), unsettled


def _current(settings: Settings, held: Held) -> tuple[frozenset[bytes], int]:
    silver = iceberg_catalog.scan(settings, "silver.notes", columns=("note_id", "event_id", "chunk_count", *_PLACE))
    metadata = _metadata_versions(settings) if any(held.metadata) else {}
    vectors = lance.note_positions(settings) if held.vectors else {}
    current = set()
    unsettled = 0
    for batch in silver.to_batches(max_chunksize=BATCH_ROWS):
        for row in batch.to_pylist():
            if _agree(row, held, metadata, vectors):
                current.add(digest(row["event_id"], _position(row)))
            else:
                unsettled += 1
    return frozenset(current), unsettled


def _agree(
    row: Mapping[str, Any],
    held: Held,
    metadata: Mapping[str, str],
    vectors: Mapping[str, Position],
) -> bool:
    """Tell whether the stores have the version of a note that silver.notes has."""
    note_id = row["note_id"]
    written = held.metadata[metadata_keys.part_hash(note_id) % len(held.metadata)]
    if written and metadata.get(note_id) != row["event_id"]:
        return False
    # A note without text has no chunks, and nothing that could be compared.
    return not held.vectors or vectors.get(note_id) == (_position(row) if row["chunk_count"] else None)


def _metadata_versions(settings: Settings) -> dict[str, str]:
    """Return the event of each note in the metadata store."""
    # Its entry under its source is far smaller than its record.
    entries = (orjson.loads(value) for _, value in slatedb.scan(settings, metadata_keys.prefix_of("source").decode()))
    return {entry["note_id"]: entry["event_id"] for entry in entries}


def _position(row: Mapping[str, Any]) -> Position:
    return Position(row["shard_id"], int(row["sequence_number"]), row["subsequence_number"])


def _written_live(marker: Marker) -> bool:
    return any("/" not in shard_id for shard_id in marker.positions)
