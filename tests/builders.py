"""Records as tests need them: whole, with what matters to the test named and the rest as it usually is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from core.records import Document, Event, Failure, Note, Position, RawRecord

__all__ = ["NOW", "document_of", "event_of", "failure_of", "note_of", "record_of"]

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


def record_of(number: int = 1, *, shard_id: str = "shardId-000000000000", **changes: Any) -> RawRecord:
    """Make the record with this sequence number."""
    fields = {"data": b"{}", "partition_key": "key", "arrival_time": NOW, "position": Position(shard_id, number)}
    return RawRecord(**{**fields, **changes})


def event_of(**changes: Any) -> Event:
    """Make an event."""
    fields = {
        "event_id": "event",
        "note_id": "note",
        "source_type": "files",
        "bucket": "bucket",
        "s3_key": "raw/files/0123",
        "content_type": None,
        "content_size": 0,
        "content_sha256": None,
        "metadata": {},
        "timestamp": NOW,
        "deleted": False,
        "record": record_of(),
    }
    return Event(**{**fields, **changes})


def document_of(text: str, *, event: Event | None = None, **changes: Any) -> Document:
    """Make a plain document; without text it is a deletion, unless `event` says otherwise."""
    fields = {
        "event": event or event_of(deleted=not text),
        "content": text,
        "content_type": "text/plain",
        "text": text,
        "title": "",
        "frontmatter_json": "{}",
        "links": (),
        "headers": (),
        "language": "en",
        "word_count": len(text.split()),
        "char_count": len(text),
    }
    return Document(**{**fields, **changes})


def note_of(text: str, *, event: Event | None = None, **changes: Any) -> Note:
    """Make a note of a document with this text."""
    return Note(document_of(text, event=event), **{"processing_version": "1", **changes})


def failure_of(number: int) -> Failure:
    """Make the failure of the record with this sequence number."""
    return Failure("parse", "NotJson", "no JSON", record_of(number, data=b"{"), NOW, f"event-{number}")
