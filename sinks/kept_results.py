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

from core.async_thread import AsyncThread
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
        self._again_at = 0.0
        self._opening: asyncio.Task[None] | None = None
        self._thread = AsyncThread("kept-results")
        # The engine drops steps without closing them.
        self.close = weakref.finalize(self, self._thread.close)

    def find(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        """Return what is kept under the keys; `wanted` has a note's id for each, whose part is asked first."""
        if not wanted:
            return {}
        try:
            return self._thread.run(self._find(wanted), seconds=OPEN_SECONDS + FIND_SECONDS)
        except _FAULTS as error:
            _warn(error)
            self._readers = {}
            self._again_at = time.monotonic() + AGAIN_SECONDS
            return {}

    async def _find(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        if self._opening is None:
            # Waited for, or a replay would compute its first notes; later ones open beside the stream.
            self._opening = asyncio.create_task(self._open())
            await self._opening
        elif (
            self._opening.done()
            and len(self._readers) < max(len(self._parts), 1)
            and time.monotonic() >= self._again_at
        ):
            self._opening = asyncio.create_task(self._open())
        gate = asyncio.Semaphore(READS_IN_FLIGHT)

        async def find_one(key: str, note_id: str) -> bytes | None:
            async with gate:
                return await self._find_one(metadata_keys.result_key(key), self._order(note_id))

        async with asyncio.timeout(FIND_SECONDS):
            found = await asyncio.gather(*(find_one(key, note_id) for key, note_id in wanted.items()))
        return {key: value for key, value in zip(wanted, found, strict=True) if value is not None}

    async def _find_one(self, key: bytes, parts: Iterable[str]) -> bytes | None:
        # A note that was renamed has its results in the part of its old name.
        for part in parts:
            if part in self._readers:
                value: bytes | None = await self._readers[part].get(key)
                if value is not None:
                    return value
        return None

    def _order(self, note_id: str) -> list[str]:
        if not self._parts:
            return []
        own = self._parts[metadata_keys.part_hash(note_id) % len(self._parts)]
        return [own, *(part for part in self._parts if part != own)]

    async def _open(self) -> None:
        self._again_at = time.monotonic() + AGAIN_SECONDS
        try:
            await self._open_missing()
        except _FAULTS as error:
            _warn(error)

    async def _open_missing(self) -> None:
        async with asyncio.timeout(OPEN_SECONDS):
            parts = await asyncio.to_thread(metadata_store.part_names, self._settings)
            written = await asyncio.to_thread(metadata_store.written_parts, self._settings)
            missing = [part for part in parts if part in written and part not in self._readers]
            cache_bytes = CACHE_BYTES // len(parts)
            opened = await asyncio.gather(
                *(metadata_store.open_reader(self._settings, part, cache_bytes=cache_bytes) for part in missing),
                return_exceptions=True,
            )
        self._parts = parts
        for part, reader in zip(missing, opened, strict=True):
            if isinstance(reader, uniffi.DbReader):
                self._readers[part] = reader
            else:
                _log.warning("kept results of a part can't be read", part=part, error=type(reader).__name__)


def _warn(error: Exception) -> None:
    _log.warning("kept results can't be read: notes are computed", error=type(error).__name__)
