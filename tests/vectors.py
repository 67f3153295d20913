"""Notes with small vectors, and what the vector store holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import lance as library
import numpy as np
import obstore

from builders import document_of, event_of, record_of
from core import aws
from core.records import Chunk, Note
from core.settings import Settings
from core.telemetry import COMMITS
from sinks import lance

START = datetime(2026, 5, 1, tzinfo=UTC)
DIMENSION = 4


def note(
    note_id: str,
    sequence: int,
    *chunks: str,
    vectors: Sequence[Sequence[float]] | None = None,
    deleted: bool = False,
    shard: str = "shard-0",
    embedded: bool = True,
) -> Note:
    """Make a note with one vector per chunk; by default each chunk points along an axis of its own."""
    time = START + timedelta(seconds=sequence)
    event = event_of(
        event_id=f"{note_id}-{sequence}",
        note_id=note_id,
        source_type="file",
        s3_key=f"raw/{note_id}",
        timestamp=time,
        deleted=deleted,
        record=record_of(sequence, shard_id=shard, arrival_time=time),
    )
    text = " ".join(chunks)
    rows = np.asarray(vectors, np.float32) if vectors is not None else np.eye(DIMENSION, dtype=np.float32)
    return Note(
        document=document_of(text, event=event),
        processing_version="7",
        chunks=tuple(Chunk(index, text, 0, len(text)) for index, text in enumerate(chunks)),
        embeddings=rows[: len(chunks)] if embedded and chunks else None,
        processed_at=time,
    )


def one_epoch(part: lance.VectorPart, notes: list[Note]) -> str:
    """Write an epoch and wait until it is merged; returns the marker."""
    part.write_batch(notes)
    part.snapshot()
    part._queue.wait()
    return part.marker.to_json()


def write(settings: Settings, *epochs: list[Note]) -> list[str]:
    """Write epochs as a fresh execution; returns the marker after each."""
    part = lance.VectorPart(settings)
    try:
        return [one_epoch(part, epoch) for epoch in epochs]
    finally:
        part.close()


def stored_objects(settings: Settings) -> list[str]:
    return [item["path"] for page in obstore.list(aws.object_store(settings), "vectors/pending/") for item in page]


def dataset(settings: Settings) -> library.LanceDataset:
    return library.dataset(settings.vectors_uri, storage_options=aws.lance_storage_options(settings))


def texts(settings: Settings) -> dict[str, str]:
    """Texts by id; fails when an id is there twice."""
    rows = dataset(settings).to_table(columns=["id", "text"]).to_pylist()
    found = {row["id"]: row["text"] for row in rows}
    assert len(found) == len(rows)
    return dict(sorted(found.items()))


def commits() -> float:
    return COMMITS.labels(store="vectors")._value.get()
