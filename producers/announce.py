"""What every producer shares: bytes to S3 first, then the event to Kinesis.

An object is named after its event id, which is made of the source's identity and the content: what is already there
is never uploaded again, and a repeated run announces the same event ids, which the flow drops.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import obstore
import orjson
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from core import aws
from core.errors import MissingError, UnreachableError, reason
from core.records import event_identity, note_identity
from core.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import PutRecordsRequestEntryTypeDef, PutRecordsResultEntryTypeDef

__all__ = ["SourceItem", "Summary", "announce", "announce_again", "announce_deletions", "raw_key"]

# Limits of one PutRecords call; a record's size counts its partition key.
BATCH_RECORDS = 500
BATCH_BYTES = 5 * 1024 * 1024
RECORD_BYTES = 1024 * 1024
# What is in memory at once: a slice of items is uploaded, then announced.
SLICE_BYTES = 32 * 1024 * 1024
ATTEMPTS = 10
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
SOURCE_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One version of one note as a source has it.

    `identity` is the source's own name of the note (a path, an address), the same for all its versions.
    A `source_type` is at most 64 lower-case letters, digits, `_` and `-`, since it is part of keys; any other
    raises ValueError.
    """

    source_type: str
    identity: str
    content: bytes
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_source_type(self.source_type)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a producer did: items announced, objects uploaded or found in place, size and kinds of the content."""

    announced: int = 0
    uploaded: int = 0
    already_there: int = 0
    content_bytes: int = 0
    by_content_type: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Announcement:
    note_id: str
    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data) + len(self.note_id)


def raw_key(source_type: str, event_id: str) -> str:
    """Name the object of an event's raw bytes."""
    return f"bronze/raw/{source_type}/{event_id}"


def announce(
    items: Iterable[SourceItem],
    *,
    settings: Settings,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Summary:
    """Put the bytes of `items` on S3, then announce them on the stream; `on_progress` hears how many more are done.

    An event is announced after its object is complete. Versions of a note reach the stream in the order given.
    Delivery is at least once, with the same event id each time. At most 500 items or about 32 MiB are in memory.

    Raises MissingError without bucket or stream, UnreachableError when S3 or Kinesis does not take the data after
    retries; what was announced until then stays announced, and a repeated run sends the rest.
    """
    kinesis = client or aws.kinesis_client(settings)
    store = aws.object_store(settings)
    announced = uploaded = content_bytes = 0
    content_types: Counter[str] = Counter()
    with asyncio.Runner() as runner:
        for group in _slices(items):
            event_ids = [event_identity(item.source_type, item.identity, item.content) for item in group]
            uploaded += runner.run(_upload(store, group, event_ids, settings=settings))
            now = datetime.now(UTC)
            announcements = [
                _announcement(item, event_id, bucket=settings.bucket, time=now)
                for item, event_id in zip(group, event_ids, strict=True)
            ]
            _send(kinesis, announcements, settings=settings, pause=pause, on_progress=on_progress)
            announced += len(group)
            content_bytes += sum(len(item.content) for item in group)
            content_types.update(item.content_type or "unknown" for item in group)
    return Summary(announced, uploaded, announced - uploaded, content_bytes, dict(sorted(content_types.items())))


def announce_deletions(
    identities: Iterable[str],
    *,
    source_type: str,
    settings: Settings,
    at: datetime | None = None,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Summary:
    """Announce that the notes named by `identities` were deleted at the aware time `at` (default: now).

    The event id holds the time, since a deletion has no content: a note that was deleted, came back and is deleted
    again needs two events. A caller that repeats a run passes the same `at`, so that the ids are the same.
    Raises like `announce`, and ValueError for a source type that can't be part of a key.
    """
    _check_source_type(source_type)
    time_of_deletion = (at or datetime.now(UTC)).astimezone(UTC)
    kinesis = client or aws.kinesis_client(settings)
    announced = 0
    for group in _groups(_deletion(source_type, identity, time_of_deletion) for identity in identities):
        _send(kinesis, group, settings=settings, pause=pause, on_progress=on_progress)
        announced += len(group)
    return Summary(announced=announced)


def announce_again(
    records: Iterable[tuple[str, bytes]],
    *,
    settings: Settings,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Put records on the stream that were on it before, in order: pairs of partition key and data. Raises like
    `announce`."""
    announcements = [_Announcement(partition_key, data) for partition_key, data in records]
    _send(
        client or aws.kinesis_client(settings), announcements, settings=settings, pause=pause, on_progress=on_progress
    )


def _check_source_type(source_type: str) -> None:
    if not SOURCE_TYPE.fullmatch(source_type):
        raise ValueError(f'source type "{source_type}" must be lower-case letters, digits, "_" or "-", at most 64')


def _announcement(item: SourceItem, event_id: str, *, bucket: str, time: datetime) -> _Announcement:
    note_id = note_identity(item.source_type, item.identity)
    record = {
        "event_id": event_id,
        "source_type": item.source_type,
        "content_size": len(item.content),
        "metadata": dict(item.metadata),
        "timestamp": time.isoformat(),
        "s3_key": raw_key(item.source_type, event_id),
        "bucket": bucket,
        "content_sha256": hashlib.sha256(item.content).hexdigest(),
        "note_id": note_id,
    }
    if item.content_type:
        record["content_type"] = item.content_type
    return _checked(_Announcement(note_id, orjson.dumps(record)), item.identity)


def _deletion(source_type: str, identity: str, time: datetime) -> _Announcement:
    # No content can begin like this by accident: a NUL byte is in no text document.
    content = b"\0deleted:" + time.isoformat().encode()
    note_id = note_identity(source_type, identity)
    record = {
        "event_id": event_identity(source_type, identity, content),
        "source_type": source_type,
        "content_size": 0,
        "metadata": {},
        "timestamp": time.isoformat(),
        "s3_key": "",
        "note_id": note_id,
        "deleted": True,
    }
    return _checked(_Announcement(note_id, orjson.dumps(record)), identity)


def _checked(announcement: _Announcement, identity: str) -> _Announcement:
    if announcement.size_bytes > RECORD_BYTES:
        raise ValueError(
            f'the record of "{identity}" has {announcement.size_bytes:,} bytes, a stream takes {RECORD_BYTES:,}: '
            "shorten its metadata"
        )
    return announcement


def _slices(items: Iterable[SourceItem]) -> Iterator[list[SourceItem]]:
    group: list[SourceItem] = []
    size = 0
    for item in items:
        group.append(item)
        size += len(item.content)
        if len(group) == BATCH_RECORDS or size >= SLICE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _groups(announcements: Iterable[_Announcement]) -> Iterator[list[_Announcement]]:
    """Cut into calls: within their limits, and no note twice, or a retry could overtake the note's next version."""
    group: list[_Announcement] = []
    notes: set[str] = set()
    size = 0
    for announcement in announcements:
        full = len(group) == BATCH_RECORDS or size + announcement.size_bytes > BATCH_BYTES
        if full or announcement.note_id in notes:
            yield group
            group, notes, size = [], set(), 0
        group.append(announcement)
        notes.add(announcement.note_id)
        size += announcement.size_bytes
    if group:
        yield group


async def _upload(
    store: S3Store, items: Sequence[SourceItem], event_ids: Sequence[str], *, settings: Settings
) -> int:
    """Upload what is not there yet, many requests in flight; returns how many objects were new."""
    in_flight = asyncio.Semaphore(settings.fetch_concurrency)

    async def put(item: SourceItem, event_id: str) -> bool:
        attributes: obstore.Attributes = {"Content-Type": item.content_type or "application/octet-stream"}
        async with in_flight:
            try:
                # The key holds the content's digest, so an object that exists is the same object.
                await obstore.put_async(
                    store, raw_key(item.source_type, event_id), item.content, mode="create", attributes=attributes
                )
            except AlreadyExistsError:
                return False
            except FileNotFoundError as error:
                raise MissingError(
                    f'bucket "{settings.bucket}" does not exist: run `pkm init`, or set PKM_BUCKET'
                ) from error
            except (BaseError, OSError) as error:
                where = aws.endpoint("s3") or f"AWS in {aws.region(settings)}"
                raise UnreachableError(
                    f'bucket "{settings.bucket}" at {where} did not take "{item.identity}": {reason(error)}'
                ) from error
        return True

    # The same version twice in one slice is one object.
    distinct = dict(zip(event_ids, items, strict=True))
    return sum(await asyncio.gather(*(put(item, event_id) for event_id, item in distinct.items())))


def _send(
    client: KinesisClient,
    announcements: Iterable[_Announcement],
    *,
    settings: Settings,
    pause: Callable[[float], None],
    on_progress: Callable[[int], None] | None,
) -> None:
    for group in _groups(announcements):
        entries: list[PutRecordsRequestEntryTypeDef] = [
            {"Data": announcement.data, "PartitionKey": announcement.note_id} for announcement in group
        ]
        _put_records(client, entries, settings=settings, pause=pause)
        if on_progress:
            on_progress(len(group))


def _put_records(
    client: KinesisClient,
    entries: list[PutRecordsRequestEntryTypeDef],
    *,
    settings: Settings,
    pause: Callable[[float], None],
) -> None:
    """Put all entries; those that the stream refused are sent again with full jitter, the others are not."""
    refused: PutRecordsResultEntryTypeDef = {}
    for attempt in range(ATTEMPTS):
        if attempt:
            longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
            pause(random.uniform(0, longest))  # noqa: S311 - spreads retries, guards nothing
        try:
            results = client.put_records(StreamName=settings.stream, Records=entries)["Records"]
        except client.exceptions.ResourceNotFoundException as error:
            raise MissingError(
                f'stream "{settings.stream}" does not exist: run `pkm init`, or set PKM_STREAM'
            ) from error
        except (BotoCoreError, ClientError) as error:
            where = aws.endpoint("kinesis") or f"AWS in {aws.region(settings)}"
            raise UnreachableError(
                f'stream "{settings.stream}" at {where} did not take records: {reason(error)}'
            ) from error
        failed = [(entry, result) for entry, result in zip(entries, results, strict=True) if "ErrorCode" in result]
        if not failed:
            return
        entries = [entry for entry, _ in failed]
        refused = failed[0][1]
    raise UnreachableError(
        f'stream "{settings.stream}" refused {len(entries)} records {ATTEMPTS} times '
        f"({refused.get('ErrorCode')}: {refused.get('ErrorMessage')}): add shards, or try again later"
    )
