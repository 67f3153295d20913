"""Reads the objects of events from S3, many at a time, and refuses those that must not be read."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar, cast

import bytewax.operators as op
import obstore
from bytewax.dataflow import Stream, operator
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore
from pydantic import TypeAdapter, ValidationError

from core import aws, layout
from core.errors import MissingError, UnreachableError
from core.first_error import noted
from core.layout import MAX_LONG_METADATA_BYTES
from core.records import Event, Failure, FetchedEvent
from core.settings import Settings
from core.telemetry import FAILURES
from operators.outcomes import History, read_as_before

__all__ = ["FetchOut", "Fetcher", "content"]

STEP = "fetch"
BODY_ATTEMPTS = 4
BODY_BACKOFF_SECONDS = 0.2

_Result = TypeVar("_Result")
_TEXTS = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class FetchOut:
    """The two streams that leave `content`."""

    fetched: Stream[FetchedEvent]
    failures: Stream[Failure]


@operator
def content(
    step_id: str,  # noqa: ARG001 - the engine reads it
    events: Stream[Event],
    *,
    settings: Settings,
    open_store: Callable[[Settings], ObjectStore] = aws.object_store,
    open_history: Callable[[Settings], History] | None = None,
) -> FetchOut:
    """Read every event's object; order is kept, and each event leaves as one fetched event or one failure.

    With `open_history`, what comes again after a restart ends as before (`operators.outcomes`).

    A deletion has no object and passes with no bytes. Stateless. Each worker keeps up to `settings.fetch_concurrency`
    requests in flight; faults are retried with jittered back-off.

    Raises UnreachableError when S3 does not answer after all retries or refuses us, MissingError when the bucket does
    not exist.
    """
    # Workers of one process are threads that share this function. Not threading.local: the engine's threads get a new
    # Python thread state, and so lose their locals, with every call.
    fetchers: dict[int, Fetcher] = {}
    histories: dict[int, History] = {}

    def fetch_batch(batch: list[Event]) -> list[FetchedEvent | Failure]:
        worker = threading.get_ident()
        if worker not in fetchers:
            fetchers[worker] = Fetcher(
                open_store(settings),
                bucket=settings.bucket,
                max_object_bytes=settings.max_object_bytes,
                concurrency=settings.fetch_concurrency,
                own_prefixes=layout.own_prefixes(settings),
            )
            if open_history is not None:
                with noted():
                    histories[worker] = open_history(settings)
        if worker in histories:
            with noted():
                return read_as_before(batch, histories[worker], fetchers[worker].fetch)
        return fetchers[worker].fetch(batch)

    outcomes = op.flat_map_batch("fetch", events, fetch_batch)
    split = op.branch("split", outcomes, lambda outcome: isinstance(outcome, FetchedEvent))
    return FetchOut(cast("Stream[FetchedEvent]", split.trues), cast("Stream[Failure]", split.falses))


class Fetcher:
    """Reads objects of one bucket with many requests in flight; belongs to one thread, which has no event loop.

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
        self._loop = asyncio.new_event_loop()
        self._finalizer = weakref.finalize(self, self._loop.close)

    def close(self) -> None:
        """Release the event loop; the object's end does the same."""
        self._finalizer()

    def fetch(self, events: list[Event]) -> list[FetchedEvent | Failure]:
        """Return what was read, or why it was not, for every event in order.

        Raises UnreachableError or MissingError for a fault that is not the event's; requests in flight are cancelled.
        """
        with noted():
            return self._loop.run_until_complete(_all_or_first_fault([self._outcome(event) for event in events]))

    async def _outcome(self, event: Event) -> FetchedEvent | Failure:
        refusal = self._refusal(event)
        if refusal is not None:
            return _failure(event, *refusal)
        if event.deleted:
            return FetchedEvent(event, b"")
        async with self._in_flight:
            return await self._read(event)

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
            body = await self._body(event.s3_key, self._max_object_bytes)
            whole = None
            if event.metadata_sha256 is not None:
                whole = await self._body(layout.long_metadata_key(event.metadata_sha256), MAX_LONG_METADATA_BYTES)
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
        if isinstance(body, int):
            return _failure(
                event,
                "TooLarge",
                f"the object has {body:,} bytes; PKM_MAX_OBJECT_BYTES allows {self._max_object_bytes:,}",
            )
        if event.content_sha256 is not None and hashlib.sha256(body).hexdigest() != event.content_sha256:
            return _failure(event, "ChecksumMismatch", "the object's SHA-256 is not the one that the event names")
        if whole is not None:
            metadata = _metadata(whole, event.metadata_sha256)
            if metadata is None:
                return _failure(event, "InvalidMetadata", "the object of its metadata is not what the event names")
            event = replace(event, metadata={**metadata, **event.metadata})
        return FetchedEvent(event, body)

    async def _body(self, key: str, max_bytes: int) -> bytes | int:
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


def _metadata(whole: bytes | int, sha256: str | None) -> dict[str, str] | None:
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
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        fault = task.exception()
        if fault is not None:
            raise fault
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
