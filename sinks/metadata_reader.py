"""Looks up notes in the metadata store again and again: its readers stay open and follow what is committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from slatedb import uniffi  # type: ignore[import-untyped]

from core.async_thread import AsyncThread
from core.errors import CommitError, UnreachableError
from core.settings import Settings
from sinks import metadata_keys, metadata_store

__all__ = ["NoteReader"]

FOLLOW_SECONDS = 1.0
"""A reader knows of a commit this long after it, and costs a request or two every time."""
CLOSE_SECONDS = 5.0

_T = TypeVar("_T")


class NoteReader:
    """Reads notes for a process that asks often, such as a service; safe to share between threads.

    A part is opened when it is first asked, in about 0.2 s; then a note that the cache has takes under a millisecond.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = AsyncThread("note-reader")
        self._opening = threading.Lock()
        self._parts: list[str] = []
        self._readers: dict[str, uniffi.DbReader] = {}
        self._written: set[str] = set()
        self._looked_at = -FOLLOW_SECONDS

    def get(self, note_id: str) -> dict[str, Any] | None:
        """Return a note's record as of a second ago or later, None for a note that is not there.

        Raises MissingError before `pkm init`, UnreachableError when object storage can't be read.
        """
        part = self._part_of(note_id)
        reader = self._reader(part)
        if reader is None:
            return None
        try:
            value = self._run(part, "read", reader.get(metadata_keys.note_key(note_id)))
        except (UnreachableError, CommitError):
            # It may have closed itself; the next one asked opens another.
            with self._opening:
                if self._readers.get(part) is reader:
                    del self._readers[part]
            raise
        record: dict[str, Any] | None = None if value is None else orjson.loads(value)
        return record

    def close(self) -> None:
        """Close the readers."""
        with self._opening:
            for part, reader in self._readers.items():
                with metadata_store.faults(self._settings, part, "close"):
                    self._thread.run(reader.shutdown(), seconds=CLOSE_SECONDS)
            self._readers.clear()
            self._thread.close()

    def _part_of(self, note_id: str) -> str:
        if not self._parts:
            self._parts = metadata_store.part_names(self._settings)
        return metadata_keys.part_name(note_id, len(self._parts))

    def _reader(self, part: str) -> uniffi.DbReader | None:
        if part in self._readers:
            return self._readers[part]
        with self._opening:
            if part in self._readers:
                return self._readers[part]
            if part not in self._written and time.monotonic() - self._looked_at >= FOLLOW_SECONDS:
                self._written = metadata_store.written_parts(self._settings)
                self._looked_at = time.monotonic()
            if part not in self._written:
                return None
            opening = metadata_store.open_reader(
                self._settings, part, follow_milliseconds=round(FOLLOW_SECONDS * 1000)
            )
            reader = self._readers[part] = self._run(part, "open", opening)
            return reader

    def _run(self, part: str, doing: str, work: Coroutine[Any, Any, _T]) -> _T:
        with metadata_store.faults(self._settings, part, doing):
            return self._thread.run(work, seconds=self._settings.retry_seconds)
