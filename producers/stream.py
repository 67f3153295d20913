"""Announcements on the stream: how a record looks, how records share calls, how refused ones are sent again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
from botocore.exceptions import BotoCoreError, ClientError

from core import aws
from core.errors import MissingError, UnreachableError, reason
from core.records import note_identity
from core.settings import Settings
from producers.items import Deletion, StoredObject
from producers.metadata import Metadata

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import PutRecordsRequestEntryTypeDef, PutRecordsResultEntryTypeDef

__all__ = ["Announcement", "announcement_of", "calls", "deletion_of", "put_records", "send"]

# Limits of one PutRecords call; a record's size counts its partition key. A single one may have 1 MiB, which no
# record of ours comes near: its metadata has 16 KiB.
CALL_RECORDS = 500
CALL_BYTES = 5 * 1024 * 1024
ATTEMPTS = 10
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0

Pause = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A record to be put on the stream; its partition key is the note's id."""

    note_id: str
    data: bytes

    @property
    def size_bytes(self) -> int:
        """What the stream counts."""
        return len(self.data) + len(self.note_id)


def announcement_of(stored: StoredObject, metadata: Metadata, *, bucket: str, time: datetime) -> Announcement:
    """Announce a version of a note that lies in `bucket`."""
    note_id = note_identity(stored.source_type, stored.identity)
    record = {
        "event_id": stored.event_id,
        "source_type": stored.source_type,
        "content_size": stored.content_size,
        "metadata": dict(metadata.record),
        "timestamp": time.isoformat(),
        "s3_key": stored.s3_key,
        "bucket": bucket,
        "note_id": note_id,
        "content_type": stored.content_type,
        "content_sha256": stored.content_sha256,
        "metadata_sha256": metadata.whole_sha256,
    }
    # Other tools read the stream too: what is not known is not there.
    data = orjson.dumps({name: value for name, value in record.items() if value is not None})
    return Announcement(note_id, data)


def deletion_of(deletion: Deletion) -> Announcement:
    """Announce that a note was deleted."""
    note_id = note_identity(deletion.source_type, deletion.identity)
    record = {
        "event_id": deletion.event_id,
        "source_type": deletion.source_type,
        "content_size": 0,
        "metadata": {},
        "timestamp": deletion.at.astimezone(UTC).isoformat(),
        "s3_key": "",
        "note_id": note_id,
        "deleted": True,
    }
    return Announcement(note_id, orjson.dumps(record))


def calls(announcements: Iterable[Announcement]) -> Iterator[list[Announcement]]:
    """Cut into calls: within their limits, and no note twice, or a retry could overtake the note's next version."""
    group: list[Announcement] = []
    notes: set[str] = set()
    size = 0
    for announcement in announcements:
        full = len(group) == CALL_RECORDS or size + announcement.size_bytes > CALL_BYTES
        if full or announcement.note_id in notes:
            yield group
            group, notes, size = [], set(), 0
        group.append(announcement)
        notes.add(announcement.note_id)
        size += announcement.size_bytes
    if group:
        yield group


def send(
    client: KinesisClient, announcements: Iterable[Announcement], *, settings: Settings, pause: Pause
) -> Iterator[int]:
    """Put announcements on the stream, call after call in order; gives how many each call took. Raises like
    `put_records`."""
    for group in calls(announcements):
        put_records(client, group, settings=settings, pause=pause)
        yield len(group)


def put_records(
    client: KinesisClient, announcements: Iterable[Announcement], *, settings: Settings, pause: Pause
) -> None:
    """Put all announcements in one call; only those that the stream refused are sent again, with full jitter.

    Raises MissingError without the stream, UnreachableError when it does not answer, or refuses one ten times.
    """
    entries: list[PutRecordsRequestEntryTypeDef] = [
        {"Data": announcement.data, "PartitionKey": announcement.note_id} for announcement in announcements
    ]
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
                f'stream "{settings.stream}" at {where} did not take records: {reason(error)}; '
                "the same command completes what is missing"
            ) from error
        failed = [(entry, result) for entry, result in zip(entries, results, strict=True) if "ErrorCode" in result]
        if not failed:
            return
        entries = [entry for entry, _ in failed]
        refused = failed[0][1]
    raise UnreachableError(
        f'stream "{settings.stream}" refused {len(entries)} records {ATTEMPTS} times '
        f"({refused.get('ErrorCode')}: {refused.get('ErrorMessage')}): add shards, or try again later; "
        "the same command completes what is missing"
    )
