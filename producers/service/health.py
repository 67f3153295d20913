"""Whether the service can take notes in: S3 and the stream answer, as of some seconds ago."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import structlog

from core.errors import PkmError
from core.settings import Settings
from producers.service.contract import Health
from sinks.metadata_store import check_store
from sources.kinesis_status import check_stream

__all__ = ["Readiness", "checks_of"]

KEEP_SECONDS = 5.0
CHECK_SECONDS = 5.0

Check = Callable[[], None]
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


def checks_of(settings: Settings) -> dict[str, Check]:
    """What is looked at: an object that `pkm init` wrote, and the stream's shards."""
    return {"s3": lambda: check_store(settings), "kinesis": lambda: check_stream(settings)}


class Readiness:
    """Looks at most every 5 seconds, however often it is asked; belongs to one event loop."""

    def __init__(self, checks: Mapping[str, Check], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = checks
        # Of its own: the loop would wait for its default threads in the end, and a check may hang.
        self._threads = ThreadPoolExecutor(2 * len(checks), thread_name_prefix="health")
        self._clock = clock
        self._results: dict[str, Literal["ok", "failing"]] = {}
        self._looked_at = -KEEP_SECONDS
        self._looking: asyncio.Task[None] | None = None
        self.stopping = False

    async def health(self) -> Health:
        """Tell whether all is well; what does not answer within 5 seconds counts as failing."""
        if self._clock() - self._looked_at >= KEEP_SECONDS and not self.stopping:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            # Whoever asks may go away; the look goes on for the others.
            await asyncio.shield(self._looking)
        if self.stopping:
            return Health(status="stopping", checks=self._results)
        failing = "failing" in self._results.values()
        return Health(status="failing" if failing else "ready", checks=self._results)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> None:
        names = list(self._checks)
        results = await asyncio.gather(*(self._try(name) for name in names))
        self._results = dict(zip(names, results, strict=True))
        self._looked_at = self._clock()

    async def _try(self, name: str) -> Literal["ok", "failing"]:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._checks[name])
        except (PkmError, TimeoutError) as error:
            _log.warning("not ready", check=name, error=str(error) or "no answer in time")
            return "failing"
        return "ok"
