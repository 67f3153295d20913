"""Reads the objects of one bucket, many at a time, those of events that come next already beside the stream.

While models work on one batch, the objects of the next are read (`ahead`), so that the stream need not wait for a
store that is far away. What was read ahead is only ever a saving: what it does not make a document of, be it refused,
missing or out of reach, is read again when it is due.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar

import obstore
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore
from pydantic import TypeAdapter, ValidationError

from core import layout
from core.async_thread import AsyncThread, finished
from core.errors import MissingError, UnreachableError
from core.first_error import noted
from core.layout import MAX_LONG_METADATA_BYTES
from core.records import Event, Failure, FetchedEvent, Position
from core.telemetry import FAILURES

__all__ = ["Fetcher"]

STEP = "fetch"
BODY_ATTEMPTS = 4
BODY_BACKOFF_SECONDS = 0.2
# Together they bound what is read ahead to 64 MB; larger objects are read when they are due.
MOST_AHEAD = 1024
MOST_AHEAD_BYTES = 64 * 1024

_Result = TypeVar("_Result")
_Body = bytes | int
"""An object's bytes, or its size when that is over the limit."""
_Key = tuple[Position, str]
_TEXTS = TypeAdapter(dict[str, str])


class Fetcher:
    """Reads objects of one bucket with up to `concurrency` requests in flight; threads may share it.

    What begins with one of `own_prefixes` is refused.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        bucket: str,
        max_object_bytes: int,
        concurrency: int,
        own_prefixes: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._own_prefixes = own_prefixes
        self._bucket = bucket
        self._max_object_bytes = max_object_bytes
        self._in_flight = asyncio.Semaphore(concurrency)
        self._changing = threading.Lock()
        self._ahead: OrderedDict[_Key, Future[_Body]] = OrderedDict()
        self._thread = AsyncThread("fetch")
        # The engine drops steps without closing them.
        self.close = weakref.finalize(self, self._thread.close)

    def ahead(self, events: Iterable[Event]) -> None:
        """Begin to read the objects of events that will be fetched soon. Never raises for what can't be read.

        At most `MOST_AHEAD` are kept, the newest; what is not fetched in the end makes room for others.
        """
        with self._changing:
            for event in islice(events, MOST_AHEAD):
                if event.deleted or event.metadata_sha256 or _key(event) in self._ahead or self._refusal(event):
                    continue
                if len(self._ahead) >= MOST_AHEAD:
                    _, dropped = self._ahead.popitem(last=False)
                    dropped.cancel()
                self._ahead[_key(event)] = self._thread.start(self._read_ahead(event))

    def fetch(self, events: list[Event]) -> list[FetchedEvent | Failure]:
        """Return what was read, or why it was not, for every event in order.

        Raises UnreachableError or MissingError for a fault that is not the event's; requests in flight are cancelled.
        """
        with noted():
            return finished(self._thread.start(_all_or_first_fault([self._outcome(event) for event in events])))

    async def _outcome(self, event: Event) -> FetchedEvent | Failure:
        refusal = self._refusal(event)
        if refusal is not None:
            return _failure(event, *refusal)
        if event.deleted:
            return FetchedEvent(event, b"")
        return await self._read(event)

    async def _read_ahead(self, event: Event) -> _Body:
        async with self._in_flight:
            return await self._body(event.s3_key, min(MOST_AHEAD_BYTES, self._max_object_bytes))

    async def _found_ahead(self, event: Event) -> FetchedEvent | None:
        with self._changing:
            reading = self._ahead.pop(_key(event), None)
        # A fault may have passed since then; one of a request that is still under way has been retried just now.
        if reading is None or (reading.done() and (reading.cancelled() or reading.exception())):
            return None
        try:
            checked = self._checked(event, await asyncio.wrap_future(reading), None)
        except FileNotFoundError:
            return None
        return checked if isinstance(checked, FetchedEvent) else None

    async def _found_now(self, event: Event) -> FetchedEvent | tuple[str, str]:
        async with self._in_flight:
            body = await self._body(event.s3_key, self._max_object_bytes)
            whole = None
            if event.metadata_sha256 is not None:
                whole = await self._body(layout.long_metadata_key(event.metadata_sha256), MAX_LONG_METADATA_BYTES)
        return self._checked(event, body, whole)

    def _refusal(self, event: Event) -> tuple[str, str] | None:
        if event.bucket != self._bucket:
            return "ForeignBucket", f"the object lies in bucket {event.bucket}; only {self._bucket} is read"
        if event.s3_key.startswith(self._own_prefixes):
            # Or whoever may announce documents could have recovery snapshots and tables copied into a note.
            return "InternalKey", "the object is part of the product's own tables, vectors, metadata or snapshots"
        if event.s3_key.strip("/") != event.s3_key:
            # The client would trim the slashes and read another object.
            return "InvalidKey", 'an object key that begins or ends with "/" can\'t be read'
        return None

    async def _read(self, event: Event) -> FetchedEvent | Failure:
        try:
            checked = await self._found_ahead(event) or await self._found_now(event)
        except FileNotFoundError as error:
            if "<Code>NoSuchBucket</Code>" in str(error):
                raise MissingError(f"bucket {self._bucket} does not exist: run `pkm init`") from error
            return _failure(event, "MissingObject", "the object, or that of its metadata, does not exist")
        except ValueError:
            return _failure(event, "InvalidKey", "the object key has an empty, dotted or unprintable segment")
        except (PermissionDeniedError, PermissionError, UnauthenticatedError) as error:
            raise UnreachableError(
                f"S3 refuses to read s3://{self._bucket}/{event.s3_key}: allow s3:GetObject on the bucket's objects,"
                " and s3:ListBucket on the bucket (without it S3 answers the same for an object that does not exist)"
            ) from error
        except (GenericError, OSError) as error:
            raise UnreachableError(
                f"reading s3://{self._bucket}/{event.s3_key} failed after all retries: check the network, the region"
                " and AWS_ENDPOINT_URL_S3; the flow resumes where it stopped"
            ) from error
        return checked if isinstance(checked, FetchedEvent) else _failure(event, *checked)

    def _checked(self, event: Event, body: _Body, whole: _Body | None) -> FetchedEvent | tuple[str, str]:
        """Return what an event's object, and that of its metadata, make of it, or the error and its message."""
        if isinstance(body, int):
            return (
                "TooLarge",
                f"the object has {body:,} bytes; PKM_MAX_OBJECT_BYTES allows {self._max_object_bytes:,}",
            )
        if event.content_sha256 is not None and hashlib.sha256(body).hexdigest() != event.content_sha256:
            return "ChecksumMismatch", "the object's SHA-256 is not the one that the event names"
        if whole is not None:
            metadata = _metadata(whole, event.metadata_sha256)
            if metadata is None:
                return "InvalidMetadata", "the object of its metadata is not what the event names"
            event = replace(event, metadata={**metadata, **event.metadata})
        return FetchedEvent(event, body)

    async def _body(self, key: str, max_bytes: int) -> _Body:
        """Return an object's bytes, or its size when that is over the limit (then nothing of it was read)."""
        attempt = 0
        while True:
            # The client retries requests by itself; a connection that breaks within the body it does not.
            result = await obstore.get_async(self._store, key)
            size = result.meta["size"]
            if size > max_bytes:
                return size
            try:
                return bytes(await result.bytes_async())
            except (GenericError, OSError):
                attempt += 1
                if attempt == BODY_ATTEMPTS:
                    raise
            # Jitter only spreads load, it need not be unpredictable.
            await asyncio.sleep(random.uniform(0, BODY_BACKOFF_SECONDS * 2**attempt))  # noqa: S311


def _key(event: Event) -> _Key:
    return event.position, event.s3_key


def _metadata(whole: _Body, sha256: str | None) -> dict[str, str] | None:
    """Read metadata that is an object of its own; None when it is too large, another, or no texts."""
    if isinstance(whole, int) or hashlib.sha256(whole).hexdigest() != sha256:
        return None
    try:
        return _TEXTS.validate_json(whole, strict=True)
    except ValidationError:
        return None


async def _all_or_first_fault(work: list[Awaitable[_Result]]) -> list[_Result]:
    tasks = [asyncio.ensure_future(item) for item in work]
    if not tasks:
        return []
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if fault := task.exception():
                raise fault
    finally:
        # Also when this is cancelled itself: the loop goes on, and so would they.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


def _failure(event: Event, error: str, message: str) -> Failure:
    FAILURES.labels(step=STEP).inc()
    return Failure(
        step=STEP,
        error=error,
        message=message,
        record=event.record,
        failed_at=datetime.now(UTC),
        event_id=event.event_id,
        s3_key=event.s3_key,
    )
