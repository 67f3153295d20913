"""The process that parsers run in, seen from the worker: time limit, recovery, one document after the other.

A parser stuck in C can't be interrupted within its own process, and one that eats all memory takes the process with
it. So parsers have their own, which is ended and started again when a document is too much for it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from pebble import ProcessExpired, ProcessPool

from core.errors import ResourceError
from operators.formats import child
from operators.formats.detect import Format
from operators.formats.extracted import Extracted, Refused

if TYPE_CHECKING:
    from pebble import ProcessFuture

__all__ = ["Parsers", "Task"]

MEMORY_BYTES = 2 * 1024**3
START_SECONDS = 60.0
WALL_FACTOR = 6
ATTEMPTS = 3

Task = tuple[str, Format, bool]
"""Text, its format, and whether the document was said to have that format."""


class Parsers:
    """One child process that reads documents, started at the first one and again whenever one was its end.

    A document may take `seconds` of CPU time, and six times that by the clock. Belongs to one thread. `close` ends
    the process; so does the object's end, and the worker's, even by SIGKILL.
    """

    def __init__(self, *, seconds: float, memory_bytes: int = MEMORY_BYTES) -> None:
        self._seconds = seconds
        self._wall_seconds = seconds * WALL_FACTOR
        self._memory_bytes = memory_bytes
        self._pool: ProcessPool | None = None
        self._finalizer: weakref.finalize[[ProcessPool], Parsers] | None = None

    def read(self, tasks: Sequence[Task]) -> list[Extracted | Refused]:
        """Read all documents; results stand in the order of `tasks`.

        A document that takes longer than its limit, or ends the process twice, is refused; the others are read.
        Raises ResourceError when the process can't be started or keeps vanishing.
        """
        results: list[Extracted | Refused | None] = [None] * len(tasks)
        waiting = list(range(len(tasks)))
        lost = 0
        while waiting:
            crashed, unread = self._read_some(tasks, waiting, results)
            # The process may have died of the document before this one, so a suspect gets a second try by itself.
            for index in crashed:
                again_crashed, again_unread = self._read_some(tasks, [index], results)
                if again_crashed:
                    results[index] = Refused("ParserCrashed", "the document ended its parser's process, twice")
                unread += again_unread
            lost = lost + 1 if len(unread) == len(waiting) else 0
            if lost == ATTEMPTS:
                raise ResourceError(
                    f"the process that parses documents could not be kept running ({ATTEMPTS} attempts): check the"
                    f" memory limit of this machine or container; it needs {self._memory_bytes // 1024**2} MiB of"
                    " address space"
                )
            waiting = sorted(unread)
        return [result for result in results if result is not None]

    def close(self) -> None:
        """End the process; the next `read` starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._pool = None

    def _read_some(
        self, tasks: Sequence[Task], indexes: list[int], results: list[Extracted | Refused | None]
    ) -> tuple[list[int], list[int]]:
        """Read the tasks at `indexes` into `results`; returns whose reading ended the process, and what is unread."""
        crashed: list[int] = []
        unread: list[int] = []
        try:
            futures = [(index, self._schedule(tasks[index])) for index in indexes]
        except (BrokenProcessPool, RuntimeError):
            # pebble says RuntimeError when its pool has failed meanwhile.
            self.close()
            return [], indexes
        for index, future in futures:
            if unread and not future.done():
                # pebble gives no result to what its pool had in the queue when it failed or was stopped.
                unread.append(index)
                continue
            try:
                # Its predecessors are done, so this one is running, or waits for the process to start.
                results[index] = future.result(timeout=START_SECONDS + self._wall_seconds)
            except ProcessExpired as expired:
                if expired.exitcode == -signal.SIGPROF:
                    results[index] = self._timed_out()
                else:
                    crashed.append(index)
            except TimeoutError:
                if future.done():
                    results[index] = self._timed_out()
                else:
                    unread.append(index)
                    self.close()
            except (BrokenProcessPool, CancelledError):
                unread.append(index)
        if unread:
            self.close()
        return crashed, unread

    def _timed_out(self) -> Refused:
        return Refused("TimedOut", f"the document takes its parser longer than {self._seconds:g} seconds")

    def _schedule(self, task: Task) -> ProcessFuture[Extracted | Refused]:
        if self._pool is None:
            # spawn: a fork would copy the worker's threads' locks and its models.
            self._pool = ProcessPool(
                max_workers=1,
                initializer=child.start,
                initargs=(os.getpid(), self._memory_bytes),
                context=multiprocessing.get_context("spawn"),
            )
            self._finalizer = weakref.finalize(self, _stop, self._pool)
        text, document_format, declared = task
        future: ProcessFuture[Extracted | Refused] = self._pool.schedule(
            child.extract_within,
            args=(self._seconds, text, document_format),
            kwargs={"declared": declared},
            timeout=self._wall_seconds,
        )
        return future


def _stop(pool: ProcessPool) -> None:
    with contextlib.suppress(RuntimeError, BrokenProcessPool):
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()
