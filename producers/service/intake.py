"""Takes one document in: its object on S3, its event on the stream, then a receipt; repeated, it does what is left.

A request with an idempotency key first keeps, by a conditional put, which content came with the key and which ids it
has. A retry, on whichever replica and after whichever crash, finds that, goes on with the same ids, and answers what
the first attempt would have.
"""

from __future__ import annotations

import asyncio
import hashlib
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from core.records import event_identity_of_digest, note_identity
from core.settings import Settings
from producers.announce import raw_key
from producers.service import figures
from producers.service.batches import Announcement, Announcer
from producers.service.problems import KEY_REUSED, ProblemError
from producers.service.stored import Key, Receipt, Stored

__all__ = ["Document", "Intake", "Taken", "identity_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What came with a request; the content itself is wherever the handler has it."""

    source_type: str
    owner: str
    identity: str
    content_sha256: bytes
    content_bytes: int
    content_type: str | None
    metadata: Mapping[str, str]

    @property
    def note_id(self) -> str:
        """The note through all its versions."""
        return note_identity(self.source_type, self.identity)

    @property
    def event_id(self) -> str:
        """This version of it."""
        return event_identity_of_digest(self.source_type, self.identity, self.content_sha256)

    @property
    def digest(self) -> str:
        """A digest of everything: two requests are the same when they have the same."""
        told = [self.event_id, self.content_type, self.owner, sorted(self.metadata.items())]
        return hashlib.sha256(orjson.dumps(told)).hexdigest()


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request is answered; `again` when an earlier one with its key was answered the same."""

    note_id: str
    event_id: str
    again: bool


def identity_of(owner: str, identity: str | None, content_sha256: bytes) -> str:
    """Return the source's name of a note: below its owner's name, so that nobody replaces the notes of others."""
    if identity is None:
        return f"{owner}/content/{content_sha256.hex()[:32]}"
    # Named, apart from those that are not, and the same however its characters were composed.
    return f"{owner}/named/{unicodedata.normalize('NFC', identity)}"


class Intake:
    """The way of every document; belongs to one event loop."""

    def __init__(self, settings: Settings, *, stored: Stored, announcer: Announcer) -> None:
        self._settings = settings
        self._stored = stored
        self._announcer = announcer

    async def known(self, document_owner: str, key: str | None) -> Key | None:
        """Return what came with an idempotency key before, to compare with; None when nothing did."""
        return None if key is None else await self._stored.key(document_owner, key)

    async def take(
        self, document: Document, place: Callable[[str], Awaitable[None]], *, key: str | None = None
    ) -> Taken:
        """Put the content on S3 with `place`, which is given the object's name, and announce it.

        When it returns, S3 has the content and the stream the event. Raises ProblemError (422) for a key that came
        with another request before, MissingError and UnreachableError; what was done until then stays done, and a
        repeated request goes on from there.
        """
        entry: Key | None = None
        if key is not None:
            ours = Key(document.digest, document.note_id, document.event_id, done=False)
            entry = await self._stored.begin(document.owner, key, ours)
            if entry.request_digest != document.digest:
                raise ProblemError(KEY_REUSED, "this Idempotency-Key came with another request before")
            if entry.done:
                return Taken(entry.note_id, entry.event_id, again=True)
        await place(raw_key(document.source_type, document.event_id))
        now = datetime.now(UTC)
        placed = await self._announcer.announce(_announcement(document, bucket=self._settings.bucket, time=now))
        receipt = Receipt(document.note_id, document.event_id, now, placed.shard_id, placed.sequence_number)
        await asyncio.gather(
            self._stored.keep(receipt),
            *([] if key is None or entry is None else [self._stored.finish(document.owner, key, entry)]),
        )
        figures.BYTES.labels(source=document.source_type).inc(document.content_bytes)
        return Taken(document.note_id, document.event_id, again=False)


def _announcement(document: Document, *, bucket: str, time: datetime) -> Announcement:
    record = {
        "event_id": document.event_id,
        "source_type": document.source_type,
        "content_size": document.content_bytes,
        "metadata": dict(document.metadata),
        "timestamp": time.isoformat(),
        "s3_key": raw_key(document.source_type, document.event_id),
        "bucket": bucket,
        "content_sha256": document.content_sha256.hex(),
        "note_id": document.note_id,
    }
    if document.content_type:
        record["content_type"] = document.content_type
    return Announcement(document.note_id, orjson.dumps(record))
