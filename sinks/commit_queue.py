"""Epochs that are written and committed beside the stream: each in order, on threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from core.first_error import note_beside

__all__ = ["CommitQueue"]

P = TypeVar("P")

# Between an epoch's write and its commit: what the stream waits for (the other sinks' writes, and the next documents)
# goes first, and the commit's dozen requests follow while models work.
HEAD_START_SECONDS = 0.5


class CommitQueue(Generic[P]):
    """Writes epochs on one thread and commits them on another, so that a write never waits for an earlier commit.

    After a failure nothing more is committed: order would be broken. The flow's sources raise it if no call of the
    owner comes first. The threads end with the process; what they had not committed is in the recovery state.
    """

    def __init__(self, commit: Callable[[P], None], *, name: str) -> None:
        self._commit = commit
        self._unconfirmed: list[Future[P]] = []
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._awaited = threading.Event()
        self._unwritten: queue.SimpleQueue[tuple[Callable[[], P], Future[P]] | None] = queue.SimpleQueue()
        self._uncommitted: queue.SimpleQueue[Future[P] | None] = queue.SimpleQueue()
        for work, doing in ((self._write_all, "write"), (self._commit_all, "commit")):
            threading.Thread(target=work, name=f"{doing}-{name}", daemon=True).start()

    def submit(self, write: Callable[[], P]) -> Future[P]:
        """Hand over the next epoch: `write` stores it and returns what is to be committed.

        Raises what an earlier one failed with.
        """
        self.raise_failure()
        written: Future[P] = Future()
        with self._changed:
            self._unconfirmed.append(written)
        self._unwritten.put((write, written))
        self._uncommitted.put(written)
        return written

    def unconfirmed(self) -> tuple[Future[P], ...]:
        """Give the commits that are not known to be in the table yet, in order, as they are when they are written."""
        with self._changed:
            return tuple(self._unconfirmed)

    def wait(self, *, at_most: int = 0) -> None:
        """Wait until at most so many commits are unconfirmed. Raises what a write or a commit failed with."""
        with self._changed:
            if len(self._unconfirmed) > at_most:
                self._awaited.set()
            self._changed.wait_for(lambda: self._failure is not None or len(self._unconfirmed) <= at_most)
            self._awaited.clear()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a write or a commit failed with, if one did."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Let the threads end when all is committed; does not wait."""
        self._unwritten.put(None)
        self._uncommitted.put(None)

    def _write_all(self) -> None:
        while (waiting := self._unwritten.get()) is not None:
            write, written = waiting
            try:
                written.set_result(write())
            except Exception as error:  # noqa: BLE001 - whoever asks for the result has it raised
                written.set_exception(error)
            # The rows must not stay until the next epoch.
            del waiting, write, written

    def _commit_all(self) -> None:
        while (written := self._uncommitted.get()) is not None:
            try:
                pending = written.result()
                self._awaited.wait(HEAD_START_SECONDS)
                self._commit(pending)
            except Exception as error:  # noqa: BLE001 - a thread has no caller; the partition's next call raises it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                note_beside(error)
                return
            with self._changed:
                self._unconfirmed.remove(written)
                self._changed.notify_all()
            del written, pending
