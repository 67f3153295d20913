"""How many requests are worked on at once: the others wait in line, and the line has an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from producers.service.problems import UNAVAILABLE, ProblemError

__all__ = ["Gate"]

RETRY_SECONDS = 2.0


class Gate:
    """Lets `places` requests in at once and `waiting` more wait up to `seconds`; belongs to one event loop.

    Who waits has not been read from: its body stays in the network, not in memory.
    """

    def __init__(self, places: int, *, waiting: int, seconds: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._waiting_limit = waiting
        self._seconds = seconds
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and keep it within the block; raises ProblemError (503) when there are too many."""
        await self._enter()
        try:
            yield
        finally:
            self._places.release()

    async def _enter(self) -> None:
        if self._places.locked() and self._waiting >= self._waiting_limit:
            raise ProblemError(UNAVAILABLE, "too many requests are waiting", retry_after_seconds=RETRY_SECONDS)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            raise ProblemError(UNAVAILABLE, "too many requests at once", retry_after_seconds=RETRY_SECONDS) from None
        finally:
            self._waiting -= 1
