"""Rows of the Iceberg tables: what a record changes in each of them, without I/O.

A sequence number has up to 56 digits, more than any integer type holds, so it is a string in every table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.records import Document, Failure, Note, Position, RawRecord, WindowAggregate

__all__ = [
    "Change",
    "Key",
    "Row",
    "bronze_note_change",
    "bronze_note_row",
    "failure_change",
    "failure_row",
    "metrics_change",
    "metrics_row",
    "silver_note_change",
    "silver_note_row",
]

Row = dict[str, Any]
Key = tuple[str | datetime, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What one record does to a table.

    With a row: add it, in place of the row with the same key. Without a row: delete the key, or, in a table that is
    only appended to, nothing but moving the marker. A record without a position is never dropped as a repetition.
    """

    row: Row | None
    key: Key = ()
    position: Position | None = None


def bronze_note_row(document: Document, *, processing_time: datetime, processing_version: str) -> Row:
    """Make the bronze.notes row of an event; the content of a deletion is null."""
    event = document.event
    return {
        "event_id": event.event_id,
        "note_id": event.note_id,
        "source_type": event.source_type,
        "bucket": event.bucket,
        "s3_key": event.s3_key,
        "content_type": document.content_type,
        "content_size": event.content_size,
        # Arrow reads a map from pairs.
        "metadata": list(event.metadata.items()),
        "timestamp": event.timestamp,
        **_origin(event.record),
        "deleted": event.deleted,
        "content": None if event.deleted else document.content,
        "word_count": document.word_count,
        "char_count": document.char_count,
        "processing_time": processing_time,
        "processing_date": processing_time.date(),
        "processing_version": processing_version,
    }


def failure_row(failure: Failure) -> Row:
    """Make the bronze.failures row of a record that a step could not process."""
    return {
        "event_id": failure.event_id,
        "step": failure.step,
        "error": failure.error,
        "message": failure.message,
        **_origin(failure.record),
        "s3_key": failure.s3_key,
        "payload": failure.record.data,
        "failed_at": failure.failed_at,
    }


def silver_note_row(note: Note, *, processing_time: datetime) -> Row:
    """Make the silver.notes row of a note's newest version; `processing_time` counts where the note has none."""
    document = note.document
    return {
        "note_id": note.event.note_id,
        "event_id": note.event.event_id,
        "source_type": note.event.source_type,
        "title": document.title,
        "text": document.text,
        "frontmatter": document.frontmatter_json,
        "links": list(document.links),
        "headers": list(document.headers),
        "entities": [
            {
                "text": entity.text,
                "type": entity.type,
                "score": entity.score,
                "start": entity.start,
                "end": entity.end,
            }
            for entity in note.entities
        ],
        "concepts": [{"text": concept.text, "score": concept.score} for concept in note.concepts],
        "language": document.language,
        "chunk_count": len(note.chunks),
        "word_count": document.word_count,
        **_origin(note.event.record),
        "processed_at": note.processed_at or processing_time,
        "processing_version": note.processing_version,
    }


def metrics_row(aggregate: WindowAggregate) -> Row:
    """Make the silver.metrics row of a window and source type."""
    return {
        "window_start": aggregate.window_start,
        "window_end": aggregate.window_end,
        "source_type": aggregate.source_type,
        "count": aggregate.count,
        "avg_words": aggregate.avg_words,
        "event_ids": list(aggregate.event_ids),
    }


def _origin(record: RawRecord) -> Row:
    return {
        "arrival_time": record.arrival_time,
        "shard_id": record.position.stream_shard_id,
        "sequence_number": str(record.position.sequence_number),
        "subsequence_number": record.position.subsequence_number,
    }


def bronze_note_change(document: Document, time: datetime, version: str) -> Change:
    """Tell what a document changes in bronze.notes: nothing when the note went back to a version it had."""
    event = document.event
    if event.revived:
        return Change(None, position=event.position)
    row = bronze_note_row(document, processing_time=time, processing_version=version)
    return Change(row, position=event.position)


def failure_change(failure: Failure, _time: datetime, _version: str) -> Change:
    """Tell what a failure changes in bronze.failures."""
    return Change(failure_row(failure), position=failure.position)


def silver_note_change(note: Note, time: datetime, _version: str) -> Change:
    """Tell what a note changes in silver.notes: a deleted note's row is removed."""
    row = None if note.event.deleted else silver_note_row(note, processing_time=time)
    return Change(row, key=(note.event.note_id,), position=note.event.position)


def metrics_change(aggregate: WindowAggregate, _time: datetime, _version: str) -> Change:
    """Tell what a window aggregate changes in silver.metrics."""
    return Change(metrics_row(aggregate), key=(aggregate.window_start, aggregate.source_type))
