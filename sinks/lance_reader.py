"""Looks into the vector store: nearest chunks, counts, and where notes are from. Writes nothing and fences nobody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.records import Position, Vector
from core.settings import Settings
from sinks.lance_dataset import check_dimension, faults, open_dataset
from sinks.lance_rows import positions_of

__all__ = ["SearchHit", "count_chunks", "count_notes", "note_positions", "search"]


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk near a query; `score` is the cosine similarity, 1 for the same direction."""

    note_id: str
    chunk: int
    score: float
    text: str
    source: str


def search(settings: Settings, vector: Vector, *, k: int) -> list[SearchHit]:
    """Return the `k` chunks nearest to `vector` (shape: dimension of the dataset) by cosine, best first.

    Without an index every row is compared. A vector of zeros has no direction and finds nothing.
    Raises ValueError for k < 1, SettingsError for a vector of another dimension, MissingError, UnreachableError.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    dataset = open_dataset(settings)
    check_dimension(settings, dataset, len(vector))
    with faults(settings, "search"):
        rows = dataset.to_table(
            columns=["note_id", "chunk", "text", "metadata", "_distance"],
            nearest={"column": "embedding", "q": np.asarray(vector, np.float32), "k": k, "metric": "cosine"},
        ).to_pylist()
    hits = [
        SearchHit(row["note_id"], row["chunk"], 1.0 - row["_distance"], row["text"], row["metadata"]["source"])
        for row in rows
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.note_id, hit.chunk))


def count_chunks(settings: Settings) -> int:
    """Count the rows. Raises MissingError, UnreachableError."""
    dataset = open_dataset(settings)
    with faults(settings, "count"):
        return int(dataset.count_rows())


def count_notes(settings: Settings) -> int:
    """Count the notes that have at least one chunk. Raises MissingError, UnreachableError."""
    dataset = open_dataset(settings)
    found: set[str] = set()
    with faults(settings, "count"):
        for batch in dataset.to_batches(columns=["note_id"]):
            found.update(batch.column("note_id").to_pylist())
    return len(found)


def note_positions(settings: Settings) -> dict[str, Position]:
    """Return for each note that has chunks where the record that they are from stands. Raises like `count_notes`."""
    dataset = open_dataset(settings)
    positions: dict[str, Position] = {}
    with faults(settings, "read"):
        for batch in dataset.to_batches(columns=["note_id", "position"]):
            positions |= positions_of(batch)
    return positions
