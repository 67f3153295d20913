"""The records that flow between source, operators and sinks.

All are frozen; an operator that adds something makes a new one. Times are aware UTC datetimes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

__all__ = [
    "Chunk",
    "Concept",
    "Document",
    "Entity",
    "Event",
    "Failure",
    "FetchedEvent",
    "Note",
    "Position",
    "RawRecord",
    "Redrive",
    "Vector",
    "Watermark",
    "WindowAggregate",
    "event_identity",
    "event_identity_of_digest",
    "note_identity",
]

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in one shard: ordered within the shard, meaningless across shards."""

    shard_id: str
    sequence_number: int
    subsequence_number: int = 0

    @property
    def stream_shard_id(self) -> str:
        """The shard as the stream names it; a replay's positions are named `REPLAY/SHARD`, so that no marker of the
        live flow covers them."""
        return self.shard_id.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as the stream holds it."""

    data: bytes
    partition_key: str
    arrival_time: datetime
    position: Position


@dataclass(frozen=True, slots=True)
class Watermark:
    """A source partition's promise: every record that arrived up to `time` was emitted in an earlier epoch.

    The stream's watermark is the minimum over all `source_partitions` partitions.
    """

    source_partition: int
    source_partitions: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Redrive:
    """Says that a dead letter was put on the stream again: the how-manieth time, and when it first arrived."""

    attempt: int
    arrival_time: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """A checked record: one version of one note, or its deletion."""

    event_id: str
    note_id: str
    source_type: str
    bucket: str
    s3_key: str
    content_type: str | None
    content_size: int
    content_sha256: str | None
    metadata: Mapping[str, str]
    timestamp: datetime
    deleted: bool
    record: RawRecord
    revived: bool = False
    """True when the note went back to an older version: bronze has the event already, silver must be told."""
    redrive: Redrive | None = None
    """Set when the record is a dead letter that was put on the stream again."""
    outdated: bool = False
    """True when the note has a newer version by now: bronze takes the event, the note stays as it is."""
    metadata_sha256: str | None = None
    """Set when the whole metadata is an object of its own, which its digest names (`core.layout`)."""

    @property
    def position(self) -> Position:
        """Where the event stands in the stream."""
        return self.record.position


@dataclass(frozen=True, slots=True)
class FetchedEvent:
    """An event with the bytes of its object; empty for a deletion."""

    event: Event
    content: bytes


@dataclass(frozen=True, slots=True)
class Document:
    """An event with its extracted text.

    `content` is the decoded original, `text` what a reader sees: all offsets refer to `text`.
    """

    event: Event
    content: str
    content_type: str
    text: str
    title: str
    frontmatter_json: str
    links: tuple[str, ...]
    headers: tuple[str, ...]
    language: str
    word_count: int
    char_count: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that fits the embedding model; `text == document.text[start:end]`."""

    index: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entity:
    """A named entity; `text == document.text[start:end]`, `type` is PER, ORG, LOC or MISC."""

    text: str
    type: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Concept:
    """A key phrase and its cosine similarity to the document."""

    text: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Note:
    """A document on its way through enrichment; what is not computed yet is empty.

    `embeddings` has one L2-normalised row per chunk that models read (at most chunks x dimension, float32), from the
    first on: of a very long note they do not read all. `vector` is their normalised mean.
    """

    document: Document
    processing_version: str
    chunks: tuple[Chunk, ...] = ()
    embeddings: Vector | None = None
    vector: Vector | None = None
    entities: tuple[Entity, ...] = ()
    concepts: tuple[Concept, ...] = ()
    processed_at: datetime | None = None
    entities_found: bool = False
    """True when the entities came out of the pass that made the vectors."""
    result_key: str = ""
    """Names text, models and code that the results depend on; empty when they are not kept."""
    reused: bool = False
    """True when the results were computed before, from the same text."""

    @property
    def event(self) -> Event:
        """The event that brought this version of the note."""
        return self.document.event

    @property
    def embedded_count(self) -> int:
        """How many of the chunks have a vector: the first so many."""
        return 0 if self.embeddings is None else len(self.embeddings)


@dataclass(frozen=True, slots=True)
class WindowAggregate:
    """Counts over the events of one `source_type` that arrived in [window_start, window_end)."""

    window_start: datetime
    window_end: datetime
    source_type: str
    count: int
    document_count: int
    word_sum: int
    event_ids: tuple[str, ...]

    @property
    def avg_words(self) -> float:
        """Mean number of words of the window's documents; deletions have none and do not count."""
        return self.word_sum / self.document_count if self.document_count else 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that a step could not process, with all it takes to look at it and to try again."""

    step: str
    error: str
    message: str
    record: RawRecord
    failed_at: datetime
    event_id: str | None = None
    s3_key: str | None = None

    @property
    def position(self) -> Position:
        """Where the failed record stands in the stream."""
        return self.record.position


def note_identity(source_type: str, identity: str) -> str:
    """Name a note through all its versions: 32 hex digits, the same on every machine at every time."""
    return _digest(source_type.encode(), identity.encode())


def event_identity(source_type: str, identity: str, content: bytes) -> str:
    """Name one version of a note: 32 hex digits over its identity and its content."""
    return event_identity_of_digest(source_type, identity, hashlib.sha256(content).digest())


def event_identity_of_digest(source_type: str, identity: str, content_sha256: bytes) -> str:
    """Name one version of a note by the SHA-256 (32 bytes) of its content, for content that is not in memory."""
    return _digest(source_type.encode(), identity.encode(), content_sha256)


def _digest(*parts: bytes) -> str:
    # Lengths are hashed too, so that ("ab", "c") and ("a", "bc") differ.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]
