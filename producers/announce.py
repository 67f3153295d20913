"""What every producer shares: bytes to S3 first, then the event to Kinesis.

An object is named after its event id, which is made of the source's identity and the content: what is already there
is never uploaded again, and a repeated run announces the same event ids, which the flow drops.

While one slice of items is announced the next is uploaded, with many requests in flight, and a third is read. A run
that fails has announced a part, in order; the same run once more completes it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from core import aws
from core.async_thread import AsyncThread
from core.settings import Settings
from producers.items import Deletion, SourceItem, StoredObject, Summary, check_source_type, raw_key
from producers.stream import Announcement, Pause, announcement_of, deletion_of, send
from producers.uploads import Ready, Uploads

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = [
    "SourceItem",
    "StoredObject",
    "Summary",
    "announce",
    "announce_again",
    "announce_deletions",
    "announce_stored",
    "raw_key",
]

# A slice ends with whatever comes first. Three are in memory: one is read, one uploaded, of one the announcements.
SLICE_ITEMS = 500
SLICE_BYTES = 16 * 1024 * 1024
SLICE_SECONDS = 1.0
UNDER_WAY = 2

_Thing = TypeVar("_Thing", SourceItem, StoredObject)


def announce(
    items: Iterable[SourceItem],
    *,
    settings: Settings,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Pause | None = None,
) -> Summary:
    """Put the bytes of `items` on S3, then announce them on the stream; `on_progress` hears how many more are done.

    An event is announced after its object is complete. Versions of a note reach the stream in the order given.
    Delivery is at least once, with the same event id each time. `items` is read, and `on_progress` called, in the
    calling thread, a slice ahead of what is uploaded: about 1,000 items, or 32 MiB and two items, are in memory.

    Raises MissingError without bucket or stream, UnreachableError when S3 or Kinesis does not take the data after
    retries; what was announced until then stays announced, and a repeated run sends the rest. What `items` raises
    is raised once the slices before it are announced.
    """
    return _announce(items, settings=settings, on_progress=on_progress, client=client, pause=pause)


def announce_stored(
    objects: Iterable[StoredObject],
    *,
    settings: Settings,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Pause | None = None,
) -> Summary:
    """Announce objects that lie in the product's bucket already, with the guarantees of `announce`, and its errors.

    Nothing is uploaded but metadata that is too long for a record.
    """
    return _announce(objects, settings=settings, on_progress=on_progress, client=client, pause=pause)


def announce_deletions(
    identities: Iterable[str],
    *,
    source_type: str,
    settings: Settings,
    at: datetime | None = None,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Pause = time.sleep,
) -> Summary:
    """Announce that the notes named by `identities` were deleted at the aware time `at` (default: now).

    The event id holds the time: a caller that repeats a run passes the same `at`, so that the ids are the same.
    Raises like `announce`, and ValueError for a source type that can't be part of a key.
    """
    check_source_type(source_type)
    time_of_deletion = at or datetime.now(UTC)
    announced = 0
    for count in send(
        client or aws.kinesis_client(settings),
        (deletion_of(Deletion(source_type, identity, time_of_deletion)) for identity in identities),
        settings=settings,
        pause=pause,
    ):
        announced += count
        if on_progress:
            on_progress(count)
    return Summary(announced=announced)


def announce_again(
    records: Iterable[tuple[str, bytes]],
    *,
    settings: Settings,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
    pause: Pause = time.sleep,
) -> None:
    """Put records on the stream that were on it before, in order: pairs of partition key and data. Raises like
    `announce`."""
    announcements = [Announcement(partition_key, data) for partition_key, data in records]
    for count in send(client or aws.kinesis_client(settings), announcements, settings=settings, pause=pause):
        if on_progress:
            on_progress(count)


def _announce(
    things: Iterable[_Thing],
    *,
    settings: Settings,
    on_progress: Callable[[int], None] | None,
    client: KinesisClient | None,
    pause: Pause | None,
) -> Summary:
    announcer = _Announcer(client or aws.kinesis_client(settings), settings=settings, pause=pause)
    under_way: deque[Future[list[Ready]]] = deque()
    total = _Total()

    def finish(left: int) -> None:
        while len(under_way) > left or (under_way and under_way[0].done()):
            ready = under_way.popleft().result()
            total.add(ready)
            if on_progress:
                on_progress(len(ready))

    with AsyncThread("uploads") as thread, announcer:
        uploads = Uploads(settings)
        for group in slices(things):
            under_way.append(announcer.after(thread.start(uploads.put_all(group))))
            del group  # or its bytes would stay while the next slice is read
            finish(UNDER_WAY)
        finish(0)
    return total.summary()


class _Announcer:
    """Announces slices one after the other, on a thread of its own, each when its uploads are done."""

    def __init__(self, client: KinesisClient, *, settings: Settings, pause: Pause | None) -> None:
        self._client, self._settings = client, settings
        self._pause = pause or self._pause_unless_stopped
        self._stopped = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="announcements")

    def after(self, uploaded: Future[list[Ready]]) -> Future[list[Ready]]:
        return self._executor.submit(self._announce, uploaded)

    def _announce(self, uploaded: Future[list[Ready]]) -> list[Ready]:
        try:
            if self._stopped.is_set():
                # A note's newer version must not be announced where an older one was not.
                raise CancelledError
            ready = uploaded.result()
            now = datetime.now(UTC)
            announcements = (
                announcement_of(one.stored, one.metadata, bucket=self._settings.bucket, time=now) for one in ready
            )
            for _ in send(self._client, announcements, settings=self._settings, pause=self._pause):
                pass
        except BaseException:
            self._stopped.set()
            uploaded.cancel()
            raise
        return ready

    def _pause_unless_stopped(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise CancelledError

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                # When the source failed, the slices before it are completed; when one did, those after it end soon.
                self._executor.shutdown()
        finally:
            # An interrupt does not wait for a stream that does not answer.
            self._stopped.set()
            self._executor.shutdown(wait=False, cancel_futures=True)


class _Total:
    def __init__(self) -> None:
        self._ready = self._uploaded = self._bytes = 0
        self._types: Counter[str] = Counter()

    def add(self, ready: list[Ready]) -> None:
        self._ready += len(ready)
        self._uploaded += sum(one.uploaded for one in ready)
        self._bytes += sum(one.stored.content_size for one in ready)
        self._types.update(one.stored.content_type or "unknown" for one in ready)

    def summary(self) -> Summary:
        there = self._ready - self._uploaded
        return Summary(self._ready, self._uploaded, there, self._bytes, dict(sorted(self._types.items())))


def slices(things: Iterable[_Thing], *, clock: Callable[[], float] = time.monotonic) -> Iterator[list[_Thing]]:
    """Cut into slices: full in number or size, or a second old when the next item comes from a slow source."""
    group: list[_Thing] = []
    size, began = 0, 0.0
    for thing in things:
        if not group:
            began = clock()
        group.append(thing)
        size += len(thing.content) if isinstance(thing, SourceItem) else 0
        if len(group) == SLICE_ITEMS or size >= SLICE_BYTES or clock() - began >= SLICE_SECONDS:
            yield group
            group, size = [], 0
    if group:
        yield group
