"""Single versions of notes to S3 and the stream, for a service that has many requests at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from core import aws
from core.errors import PkmError
from core.settings import Settings
from producers.items import Deletion, SourceItem, StoredObject
from producers.stream import Announcement, announcement_of, calls, deletion_of, put_records
from producers.uploads import Uploads

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = ["Published", "Publisher"]


@dataclass(frozen=True, slots=True)
class Published:
    """What S3 and the stream have; `uploaded` unless the same version was on S3 before."""

    note_id: str
    event_id: str
    uploaded: bool


class Publisher:
    """Publishes one thing at a time for any number of callers on one event loop.

        async with Publisher(settings) as publisher:
            published = await publisher.publish(item)

    What waits while the stream takes a call goes into the next call together, so the load does not multiply calls.
    Of two versions of a note that are published at once either may become the newer one; who awaits the first before
    the second has that order. Delivery is at least once.
    """

    def __init__(self, settings: Settings, *, client: KinesisClient | None = None) -> None:
        self._settings = settings
        self._client = client or aws.kinesis_client(settings)
        self._uploads = Uploads(settings)
        self._waiting: deque[tuple[Announcement, asyncio.Future[None]]] = deque()
        self._announcing: asyncio.Task[None] | None = None

    async def publish(self, thing: SourceItem | StoredObject | Deletion) -> Published:
        """Put the bytes of an item on S3, if it has any, and announce it; returns when both have it.

        Raises MissingError without bucket or stream, UnreachableError when S3 or Kinesis does not take it after
        retries, and ValueError for metadata above 256 KiB. After an error, publishing the same thing again is safe.
        """
        if isinstance(thing, Deletion):
            announcement = deletion_of(thing)
            await self._announce(announcement)
            return Published(announcement.note_id, thing.event_id, uploaded=False)
        ready = await self._uploads.put(thing)
        announcement = announcement_of(
            ready.stored, ready.metadata, bucket=self._settings.bucket, time=datetime.now(UTC)
        )
        await self._announce(announcement)
        return Published(announcement.note_id, ready.stored.event_id, ready.uploaded)

    async def _announce(self, announcement: Announcement) -> None:
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((announcement, taken))
        if self._announcing is None:
            self._announcing = asyncio.ensure_future(self._announce_waiting())
        await taken

    async def _announce_waiting(self) -> None:
        try:
            while self._waiting:
                group = next(calls(announcement for announcement, _ in self._waiting))
                waiters = [self._waiting.popleft()[1] for _ in group]
                try:
                    await asyncio.to_thread(
                        put_records, self._client, group, settings=self._settings, pause=time.sleep
                    )
                except PkmError as error:
                    _end(waiters, error)
                except BaseException as error:
                    _end([*waiters, *(waiter for _, waiter in self._waiting)], error)
                    self._waiting.clear()
                    raise
                else:
                    _end(waiters, None)
        finally:
            self._announcing = None

    async def close(self) -> None:
        """Wait until everything that was to be announced is."""
        if self._announcing is not None:
            await self._announcing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _end(waiters: list[asyncio.Future[None]], error: BaseException | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue  # its caller has gone
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
