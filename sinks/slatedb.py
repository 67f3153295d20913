"""The metadata store on SlateDB: the sink that writes notes with their index, and the readers.

    slatedb.output("metadata", notes, settings=settings)

A part (database) is the unit of parallelism. Delivery is exactly once: an epoch's rows and the marker of what they
cover go into one atomic batch, durable before the epoch ends.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import weakref
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, TypeVar

import bytewax.operators as op
import orjson
import structlog
from bytewax.dataflow import Stream, operator
from bytewax.outputs import FixedPartitionedSink
from slatedb import uniffi  # type: ignore[import-untyped]

from core.async_thread import AsyncThread, finished
from core.errors import FencedError, PkmError
from core.first_error import note_beside, noted
from core.markers import Marker
from core.records import Note
from core.recovery.ownership import check_ownership
from core.recovery.under_way import once_stored
from core.settings import Settings
from core.telemetry import COMMITS
from sinks import metadata_keys, metadata_store
from sinks.closing import CarefulPartition, ClosablePartition
from sinks.metadata_records import changes, position_of
from sinks.metadata_store import check_store, create_store
from sinks.versions import covered_ids, newest_versions, uncommitted

__all__ = [
    "MetadataPart",
    "MetadataSink",
    "check_store",
    "count_notes",
    "create_store",
    "find",
    "get_note",
    "output",
    "scan",
]

READS_IN_FLIGHT = 32
ROWS_PER_CALL = 500
COMMITS_PER_TABLE = 64
"""A commit is one log object; whoever opens the database reads all that came after its last sorted table."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)
_T = TypeVar("_T")
_EVERYTHING = uniffi.KeyRange(start=None, start_inclusive=True, end=None, end_inclusive=False)


@operator
def output(step_id: str, up: Stream[Note], *, settings: Settings) -> None:  # noqa: ARG001 - the engine uses step_id
    """Write notes to the metadata store; the newest version of a note replaces its record and its index entries.

    A deleted note goes with all its entries. Parts are the unit of parallelism; exactly once. The flow stops with
    FencedError when a newer execution opened the store, MissingError before `pkm init`, UnreachableError when
    object storage outlasts all retries.
    """
    keyed = op.key_on("key", up, _note_id)
    op.output("write", keyed, MetadataSink(settings))


def _note_id(note: Note) -> str:
    return note.event.note_id


class MetadataSink(FixedPartitionedSink[Note, str]):
    """Writes `(note_id, Note)` to the part that the note belongs to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def list_parts(self) -> list[str]:
        """Read the parts that were fixed when the store was created."""
        return metadata_store.part_names(self._settings)

    def part_fn(self, item_key: str) -> int:
        """Hash a note id; the engine takes the remainder."""
        return metadata_keys.part_hash(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: str | None) -> CarefulPartition[Note, str]:  # noqa: ARG002
        """Open the part for writing. Its own marker, not the snapshot's, tells what it holds."""
        with noted():
            check_ownership()
            return CarefulPartition(MetadataPart(self._settings, for_part))


class MetadataPart(ClosablePartition[Note, str]):
    """The one writer of a database."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._pending: list[Note] = []
        self._committing: list[Note] = []
        self._running: Future[None] | None = None
        self._closing: Future[None] | None = None
        self._fenced = False
        self._thread = AsyncThread(f"metadata-{name}")
        # The engine drops partitions without closing them when any step of the flow fails.
        self._close_thread = weakref.finalize(self, self._thread.close)
        self._db = self._run("open", metadata_store.open_writer(settings, name))
        stored = self._run("read marker", self._db.get(metadata_keys.MARKER_KEY))
        self._marker = Marker.from_json(stored) if stored else Marker()

    @property
    def marker(self) -> Marker:
        """What the part covers."""
        return self._marker

    def write_batch(self, values: list[Note]) -> None:
        """Keep the notes until the epoch ends."""
        self._pending += values

    def snapshot(self) -> str:
        """Begin to commit the epoch; the state is what the part then covers, as JSON.

        Raises what the commit of the epoch before failed with.
        """
        self._finish()
        notes = list(self._pending)
        covered = self._marker.advanced(note.event.position for note in notes)
        running = self._thread.start(self._end_epoch(notes), seconds=self._settings.retry_seconds)
        # Only now: an interrupt before leaves the notes where the next epoch finds them.
        self._committing, self._running, self._pending = notes, running, []
        running.add_done_callback(self._note_failure)
        return once_stored(covered.to_json(), running, wait=lambda: self._result(running))

    async def _end_epoch(self, notes: list[Note]) -> None:
        again = covered_ids(notes, self._marker)
        records = await self._stored_records(again) if again else {}
        stored = {note_id: position_of(record) for note_id, record in records.items() if record is not None}
        if lacking := uncommitted(notes, self._marker, stored, leaves_nothing=_is_deletion):
            await self._commit(lacking)

    async def _commit(self, pending: list[Note]) -> None:
        newest = newest_versions(pending)
        stored = await self._stored_records(list(newest))
        puts, stale = changes(newest.values(), stored)
        marker = self._marker.advanced(
            (note.event.position for note in pending), commit_number=self._marker.commit_number + 1
        )
        batch = uniffi.WriteBatch()
        for key in sorted(stale):
            batch.delete(key)
        for key, value in puts.items():
            batch.put(key, value)
        batch.put(metadata_keys.MARKER_KEY, marker.to_json().encode())
        handle = await self._db.write(batch)
        await self._db.flush_with_options(uniffi.FlushOptions(flush_type=_flush_type(marker.commit_number)))
        await handle.await_durable()
        self._marker = marker
        COMMITS.labels(store="metadata").inc()
        _log.debug("metadata committed", part=self._name, notes=len(newest), puts=len(puts), deletes=len(stale))

    async def _stored_records(self, note_ids: list[str]) -> dict[str, bytes | None]:
        gate = asyncio.Semaphore(READS_IN_FLIGHT)

        async def read(note_id: str) -> bytes | None:
            async with gate:
                value: bytes | None = await self._db.get(metadata_keys.note_key(note_id))
                return value

        return dict(zip(note_ids, await asyncio.gather(*map(read, note_ids)), strict=True))

    def begin_close(self) -> None:
        """Begin to close the database, once the last epoch's commit is made; a fenced one stays as it is."""
        if self._closing is None and not self._fenced:
            self._closing = self._thread.start(self._shut_down())

    def close(self) -> None:
        """Wait until the database is closed; what was not committed comes again from the stream.

        Raises what the commit of the last epoch failed with, unless that was raised before.
        """
        try:
            self.begin_close()
            self._finish()
            if self._closing is not None:
                self._result(self._closing, doing="close")
        finally:
            self._close_thread()

    async def _shut_down(self) -> None:
        running = self._running
        if running is not None:
            await asyncio.gather(asyncio.wrap_future(running), return_exceptions=True)
        if running is None or running.cancelled() or running.exception() is None:
            async with asyncio.timeout(self._settings.retry_seconds):
                await self._db.shutdown()

    def _note_failure(self, running: Future[None]) -> None:
        try:
            if not running.cancelled():
                self._result(running)
        except Exception as error:  # noqa: BLE001 - a callback has no caller; the flow's sources raise it
            note_beside(error)

    def _finish(self) -> None:
        # What is forgotten is forgotten last: an interrupt may come with every call.
        running = self._running
        if running is None:
            return
        if running.cancelled():
            self._pending, self._running = self._committing + self._pending, None
            return
        try:
            self._result(running)
        except PkmError:
            self._running = None
            raise
        self._running = None

    def _run(self, doing: str, work: Coroutine[Any, Any, _T]) -> _T:
        return self._result(self._thread.start(work, seconds=self._settings.retry_seconds), doing=doing)

    def _result(self, running: Future[_T], *, doing: str = "commit") -> _T:
        try:
            with metadata_store.faults(self._settings, self._name, doing):
                return finished(running)
        except FencedError:
            self._fenced = True
            raise


def _is_deletion(note: Note) -> bool:
    return note.event.deleted


def _flush_type(commit_number: int) -> uniffi.FlushType:
    return uniffi.FlushType.WAL if commit_number % COMMITS_PER_TABLE else uniffi.FlushType.MEM_TABLE


def get_note(settings: Settings, note_id: str) -> dict[str, Any] | None:
    """Return a note's record, or None. Sees every epoch that has ended; fences nobody.

    Raises MissingError before `pkm init`, UnreachableError when object storage can't be read.
    """
    part = metadata_keys.part_name(note_id, len(metadata_store.part_names(settings)))
    with _readers(settings, [part]) as readers:
        for reader in readers:
            value = reader.get(metadata_keys.note_key(note_id))
            if value is not None:
                record: dict[str, Any] = orjson.loads(value)
                return record
    return None


def scan(settings: Settings, prefix: str, *, limit: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Give keys that begin with `prefix`, and their values, over all parts in the order of the keys.

    At most `limit` of them. Close the iterator when it is not read to its end. Raises as `get_note`.
    """
    with _readers(settings, metadata_store.part_names(settings)) as readers:
        rows = (reader.rows(prefix) for reader in readers)
        # Bytes and their UTF-8 text sort alike, so what is sorted in every part is sorted in all.
        yield from itertools.islice(heapq.merge(*rows, key=itemgetter(0)), limit)


def find(
    settings: Settings, kind: Literal["source", "entity", "concept"], *parts: str, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return the index entries under whole parts of a key, each with its `note_id` and `title`.

    `find(settings, "entity", "PER", "Ada Lovelace")`, `find(settings, "concept", "stream processing")`,
    `find(settings, "source", "file")`; the case of entities and concepts does not matter.
    """
    if kind == "concept" or (kind == "entity" and len(parts) > 1):
        parts = (*parts[:-1], metadata_keys.fold(parts[-1])) if parts else parts
    prefix = metadata_keys.prefix_of(kind, *parts).decode()
    return [orjson.loads(value) for _, value in scan(settings, prefix, limit=limit)]


def count_notes(settings: Settings) -> int:
    """Count the notes in all parts. Raises as `get_note`."""
    # Each note has one entry under its source, which is far smaller than its record.
    return sum(1 for _ in scan(settings, metadata_keys.prefix_of("source").decode()))


@dataclass(frozen=True, slots=True)
class _Reader:
    """One part, open for reading."""

    settings: Settings
    part: str
    thread: AsyncThread
    database: uniffi.DbReader

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._run(self.database.get(key))
        return value

    def rows(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        found = self._run(self.database.scan_prefix(prefix.encode(), _EVERYTHING))
        while batch := self._run(found.next_batch(ROWS_PER_CALL)):
            yield from ((row.key.decode(), row.value) for row in batch if row.key != metadata_keys.MARKER_KEY)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        with metadata_store.faults(self.settings, self.part, "read"):
            return self.thread.run(work, seconds=self.settings.retry_seconds)


@contextmanager
def _readers(settings: Settings, parts: list[str]) -> Iterator[list[_Reader]]:
    """Open readers of those of the parts that hold anything, side by side, and close them in the end."""
    written = sorted(metadata_store.written_parts(settings).intersection(parts))

    async def open_one(part: str) -> uniffi.DbReader:
        with metadata_store.faults(settings, part, "open"):
            return await metadata_store.open_reader(settings, part)

    async def open_all() -> list[uniffi.DbReader | BaseException]:
        return await asyncio.gather(*map(open_one, written), return_exceptions=True)

    async def close_all(databases: list[uniffi.DbReader]) -> None:
        await asyncio.gather(*(database.shutdown() for database in databases))

    with AsyncThread("metadata-readers") as thread:
        with metadata_store.faults(settings, None, "open"):
            opened = thread.run(open_all(), seconds=settings.retry_seconds)
        try:
            for database in opened:
                if isinstance(database, BaseException):
                    raise database
            yield [_Reader(settings, part, thread, each) for part, each in zip(written, opened, strict=True)]
        finally:
            with metadata_store.faults(settings, None, "close"):
                readers = [each for each in opened if not isinstance(each, BaseException)]
                thread.run(close_all(readers), seconds=settings.retry_seconds)
