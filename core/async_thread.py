"""Runs coroutines on a thread of its own: beside what the caller does, and where no signal breaks into callbacks.

SlateDB's binding resumes a future from a C callback. Python runs signal handlers between any two steps of the main
thread, callbacks included, and drops what they raise there: the interrupt would be lost and the future never end.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["AsyncThread", "finished"]

_T = TypeVar("_T")


class AsyncThread:
    """An event loop on its own thread, until it is closed."""

    def __init__(self, name: str) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        # A daemon: a process that ends without closing it must not wait for it.
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name=name, daemon=True)
        self._thread.start()
        self._loop, self._stop = self._started.result()

    async def _serve(self) -> None:
        stop = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    def start(self, work: Coroutine[Any, Any, _T], *, seconds: float | None = None) -> Future[_T]:
        """Begin `work`; its future can be cancelled, and has TimeoutError when it takes more than `seconds`.

        What is closed before it ends is cancelled.
        """
        timed = _within(work, seconds)
        try:
            return asyncio.run_coroutine_threadsafe(timed, self._loop)
        except BaseException:  # an interrupt: whether the loop has the work by now, only the loop can tell
            self._loop.call_soon_threadsafe(_drop_unless_begun, timed, work)
            raise

    def run(self, work: Coroutine[Any, Any, _T], *, seconds: float) -> _T:
        """Return what `work` returns or raise what it raises; TimeoutError when it takes more than `seconds`.

        An interrupt of the calling thread cancels the work.
        """
        return finished(self.start(work, seconds=seconds))

    def close(self) -> None:
        """Cancel what still runs, close the loop and end the thread; closing again does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            # Work may hold the last reference to the owner, whose end then comes on this very thread.
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def finished(running: Future[_T]) -> _T:
    """Wait for what `start` began, and return or raise what it does; an interrupt of this thread cancels it."""
    # Not `result`, which waits on a condition: an interrupt while that lets go of its lock ends in a RuntimeError.
    done: queue.SimpleQueue[Future[_T]] = queue.SimpleQueue()
    running.add_done_callback(done.put)
    try:
        return done.get().result()
    finally:
        running.cancel()


async def _within(work: Coroutine[Any, Any, _T], seconds: float | None) -> _T:
    async with asyncio.timeout(seconds):
        return await work


def _drop_unless_begun(*coroutines: Coroutine[Any, Any, Any]) -> None:
    for coroutine in coroutines:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()
