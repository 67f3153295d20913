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
from collections.abc import Iterator, Sequence
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
# Short documents go there together: asking takes as long as reading one, and longer while commits run beside.
GROUP_DOCUMENTS = 32
GROUP_CHARACTERS = 100_000

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
            suspects, unread = self._read_some(tasks, list(_groups(tasks, waiting)), results)
            # The process may have died of another document, so a suspect gets a second try by itself.
            for index in suspects:
                again_crashed, again_unread = self._read_some(tasks, [[index]], results)
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
        self, tasks: Sequence[Task], groups: list[list[int]], results: list[Extracted | Refused | None]
    ) -> tuple[list[int], list[int]]:
        """Read groups of tasks into `results`; returns those of which one ended the process, and what is unread."""
        suspects: list[int] = []
        unread: list[int] = []
        try:
            futures = [(group, self._schedule([tasks[index] for index in group])) for group in groups]
        except (BrokenProcessPool, RuntimeError):
            # pebble says RuntimeError when its pool has failed meanwhile.
            self.close()
            return [], [index for group in groups for index in group]
        for group, future in futures:
            try:
                # Its predecessors are done, so this one is running, or waits for the process to start.
                for index, result in zip(
                    group, future.result(timeout=START_SECONDS + self._wall_seconds), strict=True
                ):
                    results[index] = result
            except ProcessExpired as expired:
                if expired.exitcode == -signal.SIGPROF and len(group) == 1:
                    results[group[0]] = self._timed_out()
                else:
                    suspects += group
            except TimeoutError:
                if not future.done():
                    unread += group
                    self.close()
                elif len(group) == 1:
                    results[group[0]] = self._timed_out()
                else:
                    suspects += group
            except (BrokenProcessPool, CancelledError):
                unread += group
        if unread:
            self.close()
        return suspects, unread

    def _timed_out(self) -> Refused:
        return Refused("TimedOut", f"the document takes its parser longer than {self._seconds:g} seconds")

    def _schedule(self, group: list[Task]) -> ProcessFuture[list[Extracted | Refused]]:
        if self._pool is None:
            # spawn: a fork would copy the worker's threads' locks and its models.
            self._pool = ProcessPool(
                max_workers=1,
                initializer=child.start,
                initargs=(os.getpid(), self._memory_bytes),
                context=multiprocessing.get_context("spawn"),
            )
            self._finalizer = weakref.finalize(self, _stop, self._pool)
        future: ProcessFuture[list[Extracted | Refused]] = self._pool.schedule(
            child.extract_each, args=(group,), kwargs={"seconds": self._seconds}, timeout=self._wall_seconds
        )
        return future


def _groups(tasks: Sequence[Task], indexes: Sequence[int]) -> Iterator[list[int]]:
    """Give the indexes in groups, in order; a long document is alone."""
    group: list[int] = []
    characters = 0
    for index in indexes:
        characters += len(tasks[index][0])
        if group and (characters > GROUP_CHARACTERS or len(group) == GROUP_DOCUMENTS):
            yield group
            group, characters = [], len(tasks[index][0])
        group.append(index)
    if group:
        yield group


def _stop(pool: ProcessPool) -> None:
    with contextlib.suppress(RuntimeError, BrokenProcessPool):
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()
