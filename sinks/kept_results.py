"""Reads results of enrichment out of the metadata store, where the sink keeps those of each note's newest version.

Nothing depends on it: what can't be read in time counts as not kept. It writes nothing and fences nobody.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Iterable, Mapping

import structlog
from slatedb import uniffi  # type: ignore[import-untyped]

from core.async_thread import AsyncThread, finished
from core.errors import PkmError
from core.settings import Settings
from sinks import metadata_keys, metadata_store

__all__ = ["StoredResults"]

OPEN_SECONDS = 30.0
FIND_SECONDS = 10.0
# Parts that did not exist yet, or did not answer, are tried again after this time.
AGAIN_SECONDS = 60.0
READS_IN_FLIGHT = 32
# Of all parts together; filters and indexes stay in it, so that a text that is new costs no request.
CACHE_BYTES = 64 * 1024 * 1024

_FAULTS = (PkmError, uniffi.Error, TimeoutError)
_log = structlog.get_logger(module=__name__)


class StoredResults:
    """What the metadata store has kept, up to about a minute ago; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts: list[str] = []
        self._readers: dict[str, uniffi.DbReader] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._again_at = 0.0
        self._first_opening: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._thread = AsyncThread("kept-results")
        # The engine drops steps without closing them.
        self.close = weakref.finalize(self, self._thread.close)

    def find(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """Return what is kept under the keys; `wanted` has a note's id for each, whose part is asked first."""
        return finished(self._thread.start(self._find(wanted))) if wanted else {}

    async def _find(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        await self._open_if_due()
        gate = asyncio.Semaphore(READS_IN_FLIGHT)

        async def find_one(key: str, note_id: str) -> bytes | None:
            async with gate:
                return await self._find_one(metadata_keys.result_key(key), self._order(note_id))

        try:
            async with asyncio.timeout(FIND_SECONDS):
                found = await asyncio.gather(*(find_one(key, note_id) for key, note_id in wanted.items()))
        except _FAULTS as error:
            _warn(error)
            self._give_up_readers()
            return {}
        return {key: value for key, value in zip(wanted, found, strict=True) if value is not None}

    async def _find_one(self, key: bytes, parts: Iterable[str]) -> bytes | None:
        # A note that was renamed has its results in the part of its old name.
        for part in parts:
            reader = self._readers.get(part)
            value: bytes | None = await reader.get(key) if reader else None
            if value is not None:
                return value
        return None

    def _give_up_readers(self) -> None:
        given_up, self._readers = self._readers, {}
        self._again_at = time.monotonic() + AGAIN_SECONDS
        for reader in given_up.values():
            closing = asyncio.create_task(_shut_down(reader))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _order(self, note_id: str) -> list[str]:
        if not self._parts:
            return []
        own = self._parts[metadata_keys.part_hash(note_id) % len(self._parts)]
        return [own, *(part for part in self._parts if part != own)]

    async def _open_if_due(self) -> None:
        if self._first_opening is None:
            self._first_opening = self._opening = asyncio.create_task(self._open())
        elif (
            self._opening is not None
            and self._opening.done()
            and len(self._readers) < max(len(self._parts), 1)
            and time.monotonic() >= self._again_at
        ):
            self._opening.result()  # raises what is no fault of a store
            self._opening = asyncio.create_task(self._open())
        # Only the first is waited for, or a replay would compute its first notes; later the stream goes on meanwhile.
        # An interrupt of one who waits leaves it to the others.
        await asyncio.wait({self._first_opening})
        self._first_opening.result()

    async def _open(self) -> None:
        deadline = asyncio.get_running_loop().time() + OPEN_SECONDS
        self._again_at = time.monotonic() + AGAIN_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                parts = await asyncio.to_thread(metadata_store.part_names, self._settings)
                written = await asyncio.to_thread(metadata_store.written_parts, self._settings)
        except _FAULTS as error:
            _warn(error)
            return
        cache_bytes = CACHE_BYTES // len(parts)

        async def open_one(part: str) -> None:
            try:
                async with asyncio.timeout_at(deadline):
                    self._readers[part] = await metadata_store.open_reader(
                        self._settings, part, cache_bytes=cache_bytes
                    )
            except _FAULTS as error:
                _warn(error, part=part)

        await asyncio.gather(*(open_one(part) for part in parts if part in written and part not in self._readers))
        self._parts = parts


async def _shut_down(reader: uniffi.DbReader) -> None:
    """Close a reader; one that is only dropped would go on to ask the store for what is new."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await reader.shutdown()
    except _FAULTS as error:
        _log.warning("a reader of kept results can't be closed; it ends with the process", error=type(error).__name__)


def _warn(error: Exception, **which: str) -> None:
    _log.warning("kept results can't be read: notes are computed", error=type(error).__name__, **which)
