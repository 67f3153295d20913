"""Rows of the vector store: its columns, and the chunks of notes as an Arrow table. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from core.errors import SettingsError
from core.records import Note, Position, Vector

__all__ = ["belongs_to", "mismatch", "positions_of", "rows_of", "schema_of", "storable"]


def schema_of(dimension: int) -> pa.Schema:
    """Return the columns of the dataset for vectors of `dimension` numbers."""
    # With a primary key Lance refuses a concurrent merge that would insert the same id a second time.
    primary_key = {"lance-schema:unenforced-primary-key": "true"}
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=primary_key),
            pa.field("note_id", pa.string(), nullable=False),
            pa.field("chunk", pa.int32(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("position", pa.string()),
            pa.field("embedding", pa.list_(pa.float32(), dimension)),
            pa.field(
                "metadata",
                pa.struct(
                    [
                        pa.field("source", pa.string()),
                        pa.field("timestamp", pa.timestamp("us", tz="UTC")),
                        pa.field("processing_version", pa.string()),
                    ]
                ),
            ),
        ]
    )


def rows_of(notes: Iterable[Note], *, dimension: int) -> pa.Table:
    """Return one row per chunk. Raises SettingsError when embeddings have another dimension than the dataset.

    Chunks without an embedding are kept with a null vector, which no search finds.
    """
    schema = schema_of(dimension)
    columns: dict[str, list[object]] = {name: [] for name in schema.names if name != "embedding"}
    vectors: list[Vector] = []
    missing: list[bool] = []
    for note in notes:
        if note.event.deleted or not note.chunks:
            continue
        note_id = storable(note.event.note_id)
        position = _position_text(note.event.position)
        metadata = {
            "source": storable(note.event.source_type),
            "timestamp": note.event.timestamp,
            "processing_version": note.processing_version,
        }
        for chunk in note.chunks:
            columns["id"].append(f"{note_id}#{chunk.index}")
            columns["note_id"].append(note_id)
            columns["chunk"].append(chunk.index)
            columns["text"].append(storable(chunk.text))
            columns["position"].append(position)
            columns["metadata"].append(metadata)
        missing += [number >= note.embedded_count for number in range(len(note.chunks))]
        vectors.append(_embeddings(note, dimension))
    flat = np.concatenate(vectors).ravel() if vectors else np.empty(0, np.float32)
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(flat, pa.float32()), dimension, mask=pa.array(missing, pa.bool_())
    )
    arrays = [
        embedding if field.name == "embedding" else pa.array(columns[field.name], field.type) for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def positions_of(rows: pa.Table) -> dict[str, Position]:
    """Return where in the stream each note's stored version stands, from the columns `note_id` and `position`."""
    found = {}
    for note_id, position in zip(rows["note_id"].to_pylist(), rows["position"].to_pylist(), strict=True):
        shard_id, sequence_number, subsequence_number = position.rsplit("/", 2)
        found[note_id] = Position(shard_id, int(sequence_number), int(subsequence_number))
    return found


def _position_text(position: Position) -> str:
    return f"{position.stream_shard_id}/{position.sequence_number}/{position.subsequence_number}"


def _embeddings(note: Note, dimension: int) -> Vector:
    # A row per chunk; what stands in those without a vector is masked.
    rows = np.zeros((len(note.chunks), dimension), np.float32)
    if note.embeddings is not None:
        found = note.embeddings.shape[1]
        if found != dimension:
            raise SettingsError(mismatch("the dataset", dimension, found))
        rows[: len(note.embeddings)] = note.embeddings
    return rows


def storable(text: str) -> str:
    """Return `text` as the dataset holds it."""
    # Half a surrogate pair, which hostile JSON may hold, can't be written as UTF-8.
    return text.encode("utf-8", "replace").decode()


def belongs_to(note_ids: Iterable[str]) -> str:
    """Return the SQL condition that a row is a chunk of one of these notes."""
    quoted = ("'" + storable(note_id).replace("'", "''") + "'" for note_id in note_ids)
    return f"note_id IN ({', '.join(quoted)})"


def mismatch(dataset: str, expected: int, found: int) -> str:
    """Say that a model does not fit a dataset, and what to do."""
    return (
        f"{dataset} holds vectors of dimension {expected}, the embedding model gives {found}: "
        "choose a model of that dimension (PKM_EMBEDDING_MODEL), or another PKM_BUCKET"
    )
