"""Writes of sinks that a recovery snapshot speaks of, and that may be under way when the engine gets the state.

At the end of an epoch the stream need not wait until all stores have taken what it left: the copier does. It
publishes a copy of the recovery database only when all that was begun before the copy was made is stored, so what is
on S3 never speaks of what is not.

The numbers are in a file beside the database, since the copier is another process and may outlive the flow:

    bytes 0 to 7     how many writes were begun
    bytes 8 to 15    how many of the first of them are stored
    bytes 16 to 23   how many have failed; then nothing is published any more, and the flow is about to stop
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from core.deferred import deferred

__all__ = ["Begun", "UnderWay", "hold", "once_stored", "release"]

FILE = ".pkm-under-way"
_NUMBER_BYTES = 8
_BEGUN, _STORED, _FAILED = 0, 1, 2

S = TypeVar("S")


class UnderWay:
    """The writes of this process, told to the copier of the recovery directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        # A new file: the copier of an earlier flow may still look at the old one.
        self._path.unlink(missing_ok=True)
        self._descriptor = os.open(
            self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        self._changing = threading.Lock()
        self._open: set[int] = set()
        self._begun = 0
        self._failed = 0
        for number in (_BEGUN, _STORED, _FAILED):
            self._tell(number, 0)

    def begin(self, write: Future[Any]) -> None:
        """Note a write that has begun; it is stored when its future has a result."""
        with self._changing:
            self._begun += 1
            number = self._begun
            self._open.add(number)
            self._tell(_BEGUN, number)
        write.add_done_callback(
            lambda done: self._ended(number, stored=not done.cancelled() and not done.exception())
        )

    def close(self) -> None:
        """Remove the file; writes that end later change nothing."""
        with self._changing:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                self._path.unlink(missing_ok=True)

    def _ended(self, number: int, *, stored: bool) -> None:
        with self._changing:
            if stored:
                self._open.discard(number)
                self._tell(_STORED, min(self._open, default=self._begun + 1) - 1)
            else:
                self._failed += 1
                self._tell(_FAILED, self._failed)

    def _tell(self, place: int, number: int) -> None:
        if self._descriptor >= 0:
            os.pwrite(self._descriptor, number.to_bytes(_NUMBER_BYTES, "little"), place * _NUMBER_BYTES)


class Begun:
    """What had begun when this was made, seen from another process."""

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError when the flow has ended well, or the directory is gone."""
        self._descriptor = os.open(directory / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._begun = self._number(_BEGUN)

    @property
    def stored(self) -> bool:
        """Whether all of it is stored."""
        return self._number(_STORED) >= self._begun

    @property
    def failed(self) -> bool:
        """Whether a write has failed, so that it never will be."""
        return self._number(_FAILED) > 0

    def close(self) -> None:
        """Look no more."""
        os.close(self._descriptor)

    def _number(self, place: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, _NUMBER_BYTES, place * _NUMBER_BYTES), "little")


_held: list[UnderWay] = []


def hold(writes: UnderWay) -> None:
    """Have the sinks of this process tell their writes to `writes`, for a copier that looks at them."""
    _held.append(writes)


def release(writes: UnderWay) -> None:
    """Undo `hold`; safe to repeat."""
    if writes in _held:
        _held.remove(writes)


def once_stored(state: S, write: Future[Any], *, wait: Callable[[], object] | None = None) -> S:
    """Return what to give to the engine as `state`, which speaks of what `write` stores.

    Where a copier looks at this process's writes, that is the state itself. In other processes of a cluster, whose
    state is kept by the first, and where nobody publishes anything, it is one that waits (`core.deferred`): it calls
    `wait`, by default the write's `result`, and raises what that raises.
    """
    if not _held:
        return deferred(lambda: ((wait or write.result)(), state)[1])
    for writes in _held:
        writes.begin(write)
    return state
