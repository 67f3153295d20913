"""Notes as the metadata store gets them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from builders import event_of, record_of
from core.records import Chunk, Concept, Document, Entity, Note

START = datetime(2026, 5, 1, tzinfo=UTC)


def note(
    note_id: str,
    sequence: int,
    *,
    shard: str = "shard-0",
    title: str = "Engines",
    entities: tuple[tuple[str, str], ...] = (("PER", "Ada Lovelace"),),
    concepts: tuple[str, ...] = ("analytical engine",),
    deleted: bool = False,
    source_type: str = "file",
) -> Note:
    """Make a note as enrichment leaves it; `sequence` is also its time in seconds."""
    time = START + timedelta(seconds=sequence)
    event = event_of(
        event_id=f"{note_id}-{sequence}",
        note_id=note_id,
        source_type=source_type,
        s3_key=f"raw/{note_id}",
        content_type="text/markdown",
        content_size=10,
        metadata={"path": f"/notes/{note_id}.md"},
        timestamp=time,
        deleted=deleted,
        record=record_of(sequence, shard_id=shard, partition_key=note_id, arrival_time=time),
    )
    text = "" if deleted else "The engine weaves algebraic patterns."
    document = Document(
        event=event,
        content=text,
        content_type="text/markdown",
        text=text,
        title=title,
        frontmatter_json="{}",
        links=("https://example.org",),
        headers=(),
        language="en",
        word_count=len(text.split()),
        char_count=len(text),
    )
    return Note(
        document=document,
        processing_version="1",
        chunks=() if deleted else (Chunk(0, text, 0, len(text)),),
        entities=() if deleted else tuple(Entity(text, type_, 0.9, 0, 3) for type_, text in entities),
        concepts=() if deleted else tuple(Concept(text, 0.5) for text in concepts),
        processed_at=time,
    )
