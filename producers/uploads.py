"""Puts content on S3, and nothing that is there already."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError
from obstore.store import S3Store

from core import aws
from core.errors import MissingError, UnreachableError, reason
from core.layout import long_metadata_key
from core.records import event_identity_of_digest, note_identity
from core.settings import Settings
from producers.content_types import detect_content_type
from producers.items import SourceItem, StoredObject, raw_key
from producers.metadata import Metadata, place

__all__ = ["Ready", "Uploads"]

ASK_FIRST_BYTES = 64 * 1024
"""Above this size it is asked whether the object is there before its bytes travel; below, asking costs more."""

LONGEST_PAUSE_SECONDS = 0.5
# The client tells this answer (409) and that the object is there (412) with the same exception.
_UNDER_WAY = "ConditionalRequestConflict"

# What the flow takes for a content type.
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Ready:
    """What is on S3 and can be announced; `uploaded` unless it was there before."""

    stored: StoredObject
    metadata: Metadata
    uploaded: bool


class Uploads:
    """Uploads with many requests in flight; belongs to one event loop.

    Raises MissingError without the bucket, UnreachableError when S3 does not take something after retries, and
    ValueError for metadata above 256 KiB.
    """

    def __init__(self, settings: Settings, *, store: S3Store | None = None) -> None:
        self._settings = settings
        self._store = store or aws.object_store(settings)
        self._in_flight = asyncio.Semaphore(settings.fetch_concurrency)

    async def put_all(self, things: Sequence[SourceItem | StoredObject]) -> list[Ready]:
        """Put what is not there yet; gives what can be announced, in order. The first fault cancels the others."""
        stored = [thing if isinstance(thing, StoredObject) else _stored(thing) for thing in things]
        # The same version twice is one object.
        contents = {
            one.event_id: (one, thing.content if isinstance(thing, SourceItem) else None)
            for one, thing in zip(stored, things, strict=True)
        }
        tasks = [asyncio.ensure_future(self._put(*content)) for content in contents.values()]
        try:
            ready = dict(zip(contents, await asyncio.gather(*tasks), strict=True))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        in_order = []
        for one in stored:
            in_order.append(ready[one.event_id])
            ready[one.event_id] = replace(ready[one.event_id], uploaded=False)
        return in_order

    async def put(self, thing: SourceItem | StoredObject) -> Ready:
        """Put one unless it is there."""
        return (await self.put_all([thing]))[0]

    async def _put(self, stored: StoredObject, content: bytes | None) -> Ready:
        own = {"note-id": note_identity(stored.source_type, stored.identity), "source-type": stored.source_type}
        metadata = place(stored.metadata, identity=stored.identity, own=own)
        if metadata.whole is not None and metadata.whole_sha256 is not None:
            key = long_metadata_key(metadata.whole_sha256)
            await self._put_object(stored, key, metadata.whole, {"Content-Type": "application/json"})
        uploaded = False
        if content is not None:
            attributes = {"Content-Type": stored.content_type or "application/octet-stream", **metadata.attributes}
            uploaded = await self._put_object(stored, stored.s3_key, content, attributes)
        return Ready(stored, metadata, uploaded)

    async def _put_object(
        self, stored: StoredObject, key: str, content: bytes, attributes: obstore.Attributes
    ) -> bool:
        async with self._in_flight:
            try:
                if len(content) > ASK_FIRST_BYTES and await self._exists(key):
                    return False
                return await self._create(key, content, attributes)
            except FileNotFoundError as error:
                raise MissingError(
                    f'bucket "{self._settings.bucket}" does not exist: run `pkm init`, or set PKM_BUCKET'
                ) from error
            except (BaseError, OSError) as error:
                where = aws.endpoint("s3") or f"AWS in {aws.region(self._settings)}"
                raise UnreachableError(
                    f'bucket "{self._settings.bucket}" at {where} did not take "{stored.identity}": {reason(error)}; '
                    "the same command completes what is missing"
                ) from error

    async def _create(self, key: str, content: bytes, attributes: obstore.Attributes) -> bool:
        ends = time.monotonic() + self._settings.retry_seconds
        while True:
            try:
                await obstore.put_async(
                    self._store, key, content, mode="create", attributes=attributes, use_multipart=False
                )
            except AlreadyExistsError as error:
                # The key names the content by a digest, so an object that exists is the same object.
                if _UNDER_WAY not in str(error):
                    return False
                # Another put of it is under way, which may yet fail.
                if time.monotonic() > ends:
                    raise
            except GenericError:
                # The client does not repeat a conditional put whose connection broke; this one can be repeated.
                if time.monotonic() > ends:
                    raise
            else:
                return True
            await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_SECONDS))  # noqa: S311 - it only spreads load

    async def _exists(self, key: str) -> bool:
        try:
            await obstore.head_async(self._store, key)
        except (FileNotFoundError, PermissionDeniedError, PermissionError):
            # Who may only put finds out by putting.
            return False
        return True


def _stored(item: SourceItem) -> StoredObject:
    digest = hashlib.sha256(item.content)
    event_id = event_identity_of_digest(item.source_type, item.identity, digest.digest())
    declared = item.content_type
    return StoredObject(
        source_type=item.source_type,
        identity=item.identity,
        event_id=event_id,
        s3_key=raw_key(item.source_type, event_id),
        content_size=len(item.content),
        content_sha256=digest.hexdigest(),
        content_type=declared
        if declared and _CONTENT_TYPE.fullmatch(declared)
        else detect_content_type(item.content),
        metadata=item.metadata,
    )
