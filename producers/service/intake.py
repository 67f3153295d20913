"""Takes one document in: its object on S3, its event on the stream, then a receipt; repeated, it does what is left.

A request with an idempotency key first keeps, by a conditional put, which content came with the key and which ids it
has. A retry, on whichever replica and after whichever crash, finds that, goes on with the same ids, and answers what
the first attempt would have.
"""

from __future__ import annotations

import asyncio
import hashlib
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from core.records import event_identity_of_digest, note_identity
from core.settings import Settings
from producers.items import StoredObject, raw_key
from producers.metadata import Metadata
from producers.service import figures
from producers.service.batches import Announcer
from producers.service.problems import KEY_REUSED, ProblemError
from producers.service.stored import Key, Receipt, Stored
from producers.stream import announcement_of

__all__ = ["Intake", "Taken", "described", "identity_of"]

Put = Callable[[], Awaitable[Metadata]]
"""Puts a document's content on S3, and says how its metadata was divided."""


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


def described(
    source_type: str,
    identity: str,
    *,
    content_sha256: bytes,
    content_size: int,
    content_type: str,
    metadata: dict[str, str],
) -> StoredObject:
    """Describe content as the object that it is to be."""
    event_id = event_identity_of_digest(source_type, identity, content_sha256)
    return StoredObject(
        source_type=source_type,
        identity=identity,
        event_id=event_id,
        s3_key=raw_key(source_type, event_id),
        content_size=content_size,
        content_sha256=content_sha256.hex(),
        content_type=content_type,
        metadata=metadata,
    )


class Intake:
    """The way of every document; belongs to one event loop."""

    def __init__(self, settings: Settings, *, stored: Stored, announcer: Announcer) -> None:
        self._settings = settings
        self._stored = stored
        self._announcer = announcer

    async def known(self, owner: str, key: str | None) -> Key | None:
        """Return what came with an idempotency key before, to compare with; None when nothing did."""
        return None if key is None else await self._stored.key(owner, key)

    async def take(self, document: StoredObject, put: Put, *, owner: str, key: str | None = None) -> Taken:
        """Put the content on S3 with `put`, then announce it.

        When it returns, S3 has the content and the stream the event. Raises ProblemError (422) for a key that came
        with another request before, MissingError and UnreachableError; what was done until then stays done, and a
        repeated request goes on from there.
        """
        note_id = note_identity(document.source_type, document.identity)
        entry: Key | None = None
        if key is not None:
            ours = Key(_digest(document), note_id, document.event_id, done=False)
            entry = await self._stored.begin(owner, key, ours)
            if entry.request_digest != ours.request_digest:
                raise ProblemError(KEY_REUSED, "this Idempotency-Key came with another request before")
            if entry.done:
                return Taken(entry.note_id, entry.event_id, again=True)
        metadata = await put()
        now = datetime.now(UTC)
        announcement = announcement_of(document, metadata, bucket=self._settings.bucket, time=now)
        place = await self._announcer.announce(announcement)
        receipt = Receipt(note_id, document.event_id, now, place.shard_id, place.sequence_number)
        await asyncio.gather(
            self._stored.keep(receipt),
            *([] if key is None or entry is None else [self._stored.finish(owner, key, entry)]),
        )
        figures.BYTES.labels(source=document.source_type).inc(document.content_size)
        return Taken(note_id, document.event_id, again=False)


def _digest(document: StoredObject) -> str:
    """Digest everything that a request said: two with the same are the same request."""
    told = [document.event_id, document.content_type, sorted(document.metadata.items())]
    return hashlib.sha256(orjson.dumps(told)).hexdigest()
