"""Commits that are made beside the stream: one after the other, on a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["CommitQueue"]

P = TypeVar("P")


class CommitQueue(Generic[P]):
    """Makes commits one after the other on a thread of its own.

    After a failure nothing more is committed: order would be broken. The thread ends with the process; what it had
    not finished is in the recovery state.
    """

    def __init__(self, commit: Callable[[P], None], *, name: str) -> None:
        self._commit = commit
        self._unconfirmed: list[P] = []
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._waiting: queue.SimpleQueue[P | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"commit-{name}", daemon=True)
        self._thread.start()

    def submit(self, pending: P) -> None:
        """Hand over the next commit. Raises what an earlier one failed with."""
        self.raise_failure()
        with self._changed:
            self._unconfirmed.append(pending)
        self._waiting.put(pending)

    def unconfirmed(self) -> tuple[P, ...]:
        """Give the commits that are not known to be in the table yet, in order."""
        with self._changed:
            return tuple(self._unconfirmed)

    def wait(self, *, at_most: int = 0) -> None:
        """Wait until at most so many commits are unconfirmed. Raises what a commit failed with."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or len(self._unconfirmed) <= at_most)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a commit failed with, if one did."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Let the thread end when it has made all commits; does not wait."""
        self._waiting.put(None)

    def _run(self) -> None:
        while (pending := self._waiting.get()) is not None:
            try:
                self._commit(pending)
            except Exception as error:  # noqa: BLE001 - a thread has no caller; the partition's next call raises it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._unconfirmed.remove(pending)
                self._changed.notify_all()
