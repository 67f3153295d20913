"""Epochs that are stored and committed beside the stream: each in order, on threads of their own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from core.first_error import note_beside

__all__ = ["CommitQueue"]

P = TypeVar("P")

# Between the moment an epoch is stored and its commit: what the stream or a recovery snapshot waits for (the next
# documents, the other sinks' epochs) goes first, and the commit's requests follow while models work.
HEAD_START_SECONDS = 0.5


class CommitQueue(Generic[P]):
    """Stores epochs on one thread and commits them on another, so that storing never waits for an earlier commit.

    After a failure nothing more is stored or committed: order would be broken. The flow's sources raise it if no call
    of the owner comes first. The threads end with the process; what they had not committed is in the recovery state.
    """

    def __init__(self, commit: Callable[[P], None], *, name: str) -> None:
        self._commit = commit
        self._unconfirmed: deque[P] = deque()
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._awaited = threading.Event()
        self._unstored: queue.SimpleQueue[tuple[Callable[[], object], Future[None]] | None] = queue.SimpleQueue()
        self._uncommitted: queue.SimpleQueue[tuple[P, Future[None]] | None] = queue.SimpleQueue()
        self.stored: Future[None] = Future()
        """Done when all that was submitted so far is stored; has what it failed with."""
        self.stored.set_result(None)
        for work, doing in ((self._store_all, "store"), (self._commit_all, "commit")):
            threading.Thread(target=work, name=f"{doing}-{name}", daemon=True).start()

    def submit(self, epoch: P, store: Callable[[], object]) -> None:
        """Hand over the next epoch, to be committed once `store` has stored what the commit needs.

        Raises what an earlier one failed with.
        """
        self.raise_failure()
        self.stored = Future()
        with self._changed:
            self._unconfirmed.append(epoch)
        self._unstored.put((store, self.stored))
        self._uncommitted.put((epoch, self.stored))

    def unconfirmed(self) -> tuple[P, ...]:
        """Give the epochs whose commits are not known to be made yet, in order; they need not be stored yet."""
        with self._changed:
            return tuple(self._unconfirmed)

    def wait(self, *, at_most: int = 0) -> None:
        """Wait until at most so many epochs are unconfirmed. Raises what storing or committing one failed with."""
        with self._changed:
            if len(self._unconfirmed) > at_most:
                self.hurry()
            self._changed.wait_for(lambda: self._failure is not None or len(self._unconfirmed) <= at_most)
            self._awaited.clear()
        self.raise_failure()

    def hurry(self) -> None:
        """Give nothing a head start any more, until somebody has waited."""
        self._awaited.set()

    def raise_failure(self) -> None:
        """Raise what storing or committing an epoch failed with, if one did."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Let the threads end when all is committed; does not wait."""
        self._unstored.put(None)
        self._uncommitted.put(None)

    def _store_all(self) -> None:
        failure: Exception | None = None
        while (waiting := self._unstored.get()) is not None:
            store, stored = waiting
            try:
                if failure is not None:
                    raise failure
                store()
            except Exception as error:  # noqa: BLE001 - whoever asks for the result has it raised
                failure = error
                stored.set_exception(error)
            else:
                stored.set_result(None)
            # The rows must not stay until the next epoch.
            del waiting, store, stored

    def _commit_all(self) -> None:
        while (waiting := self._uncommitted.get()) is not None:
            epoch, stored = waiting
            try:
                stored.result()
                self._awaited.wait(HEAD_START_SECONDS)
                self._commit(epoch)
            except Exception as error:  # noqa: BLE001 - a thread has no caller; the partition's next call raises it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                note_beside(error)
                return
            with self._changed:
                self._unconfirmed.popleft()
                self._changed.notify_all()
            del waiting, epoch, stored
