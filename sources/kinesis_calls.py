"""Makes blocking calls on threads, so that the worker, who decides about them, never waits for one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Call", "CallThreads", "Calls"]

X = TypeVar("X")


class Call(Generic[X]):
    """One call: under way until `done`; then `result` gives or raises what it ended with."""

    __slots__ = ("_error", "_result", "_work", "done")

    def __init__(self, work: Callable[[], X]) -> None:
        self._work = work
        self._result: X | None = None
        self._error: BaseException | None = None
        self.done = False

    def run(self) -> None:
        """Make the call; on a thread that has nothing else to do."""
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever asks for the result
            self._error = error
        finally:
            self.done = True

    def result(self) -> X:
        """Return what the call gave, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class Calls(Protocol):
    """Something that makes calls."""

    def submit(self, work: Callable[[], X]) -> Call[X]:
        """Have `work` done, now or soon."""

    def close(self) -> None:
        """Take no more work; calls under way are left to themselves."""


class CallThreads:
    """Makes calls on at most `most` threads, started as they are needed.

    The threads are daemons: a call that hangs must not keep the process from ending.
    """

    def __init__(self, most: int, *, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._under_way: list[Call[Any]] = []

    def submit(self, work: Callable[[], X]) -> Call[X]:
        """Have `work` done by the next thread that is free."""
        call = Call(work)
        self._under_way = [*(other for other in self._under_way if not other.done), call]
        if len(self._under_way) > len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(call)
        return call

    def close(self) -> None:
        """Let the threads end once they have made what was submitted."""
        for _ in self._threads:
            self._queue.put(None)
        self._threads = []

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            call.run()
