"""Puts announcements of many requests on the stream with few calls; each request hears of its own record."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from core import aws
from core.errors import MissingError, PkmError, UnreachableError, reason
from core.settings import Settings
from producers.service import figures
from producers.stream import CALL_BYTES, CALL_RECORDS, Announcement

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = ["Announcer", "Place", "PutRecords", "put_on_stream"]

LINGER_SECONDS = 0.005
CALLS_IN_FLIGHT = 4
PATIENCE_SECONDS = 15.0
"""How long a record that the stream refuses is sent again before its request is told."""
CALL_SECONDS = 10.0
"""And how long a call may take on top of it."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
WAITING_RECORDS = 5_000
# A whole call that is refused for this is not broken, only early.
_THROTTLED = frozenset({"ProvisionedThroughputExceededException", "LimitExceededException", "ThrottlingException"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the stream a record was put."""

    shard_id: str
    sequence_number: str


class PutRecords(Protocol):
    """Puts records on the stream, and gives for each of them its place, or why it was refused for now."""

    def __call__(self, announcements: Sequence[Announcement], /) -> list[Place | str]:
        """Raises PkmError when it was not for now."""


@dataclass(slots=True, eq=False)
class _Waiting:
    announcement: Announcement
    placed: asyncio.Future[Place]
    give_up_at: float
    attempts: int = 0


class Announcer:
    """Gathers what arrives within 5 ms into calls of at most 500 records or 5 MiB, up to four of them at a time.

    Records of one note are in one call at a time, so their order is that in which they were given. Delivery is at
    least once: a record whose call was answered with an error may be on the stream. Belongs to one event loop.
    """

    def __init__(
        self,
        put: PutRecords,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._put = put
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._pausing: set[_Waiting] = set()
        self._notes_in_flight: set[str] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(CALLS_IN_FLIGHT)
        self._work = asyncio.Event()
        self._threads = ThreadPoolExecutor(CALLS_IN_FLIGHT, thread_name_prefix="announce")
        self._loop = asyncio.create_task(self._run(), name="announcer")

    async def announce(self, announcement: Announcement) -> Place:
        """Return where the record was put, once the stream has it.

        Raises MissingError without a stream, UnreachableError when Kinesis does not answer within 25 seconds, refuses
        the record for 15, or too many wait already.
        """
        if len(self._waiting) >= WAITING_RECORDS:
            raise UnreachableError(f"{len(self._waiting):,} records wait for the stream")
        waiting = _Waiting(
            announcement, asyncio.get_running_loop().create_future(), self._clock() + self._patience_seconds
        )
        self._waiting.append(waiting)
        self._work.set()
        try:
            async with asyncio.timeout(self._patience_seconds + CALL_SECONDS):
                return await waiting.placed
        except TimeoutError:
            raise UnreachableError("the stream did not answer in time") from None

    async def close(self) -> None:
        """Stop; what still waits is cancelled, and its requests with it."""
        self._loop.cancel()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(self._loop, *self._calls, return_exceptions=True)
        for waiting in (*self._waiting, *self._pausing):
            waiting.placed.cancel()
        # A call that hangs ends with the process.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            await asyncio.sleep(LINGER_SECONDS)
            await self._free.acquire()
            group = self._next_group()
            if not group:
                self._free.release()
                self._work.clear()
                continue
            call = asyncio.create_task(self._call(group))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        later: list[_Waiting] = []
        size, notes = 0, set(self._notes_in_flight)
        while self._waiting and len(group) < CALL_RECORDS:
            waiting = self._waiting.popleft()
            if waiting.placed.done():
                continue  # its request is gone
            announcement = waiting.announcement
            if announcement.note_id in notes:
                later.append(waiting)
                continue
            if group and size + announcement.size_bytes > CALL_BYTES:
                self._waiting.appendleft(waiting)
                break
            group.append(waiting)
            notes.add(announcement.note_id)
            size += announcement.size_bytes
        self._waiting.extendleft(reversed(later))
        self._notes_in_flight.update(waiting.announcement.note_id for waiting in group)
        return group

    async def _call(self, group: list[_Waiting]) -> None:
        refused: list[tuple[_Waiting, str]] = []
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._put, [waiting.announcement for waiting in group]
            )
            for waiting, answer in zip(group, answers, strict=True):
                if isinstance(answer, str):
                    refused.append((waiting, answer))
                elif not waiting.placed.done():
                    waiting.placed.set_result(answer)
            figures.ANNOUNCED.inc(len(group) - len(refused))
        except asyncio.CancelledError:
            for waiting in group:
                waiting.placed.cancel()
            raise
        except PkmError as error:
            for waiting in group:
                if not waiting.placed.done():
                    # One each: an exception keeps the trace of whom it was raised in.
                    waiting.placed.set_exception(type(error)(*error.args))
        finally:
            self._free.release()
            again = {waiting.announcement.note_id for waiting, _ in refused}
            self._done_with(waiting for waiting in group if waiting.announcement.note_id not in again)
        for waiting, why in refused:
            self._try_later(waiting, why)

    def _done_with(self, group: Iterable[_Waiting]) -> None:
        self._notes_in_flight.difference_update(waiting.announcement.note_id for waiting in group)
        self._work.set()

    def _try_later(self, waiting: _Waiting, why: str) -> None:
        figures.REFUSED.inc()
        waiting.attempts += 1
        if self._clock() >= waiting.give_up_at:
            self._done_with([waiting])
            if not waiting.placed.done():
                waiting.placed.set_exception(UnreachableError(f"the stream refuses records: {why}"))
            return
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**waiting.attempts)
        pause = random.uniform(0, longest)  # noqa: S311 - spreads retries, guards nothing

        def again() -> None:
            self._pausing.discard(waiting)
            # In front, and its note is kept until now: nothing that came after it may overtake it.
            self._waiting.appendleft(waiting)
            self._done_with([waiting])

        self._pausing.add(waiting)
        asyncio.get_running_loop().call_later(pause, again)


def put_on_stream(client: KinesisClient, settings: Settings) -> PutRecords:
    """Return the function that puts records on the stream of `settings` with one call."""

    def put(announcements: Sequence[Announcement], /) -> list[Place | str]:
        try:
            results = client.put_records(
                StreamName=settings.stream,
                Records=[{"Data": each.data, "PartitionKey": each.note_id} for each in announcements],
            )["Records"]
        except client.exceptions.ResourceNotFoundException as error:
            raise MissingError(
                f'stream "{settings.stream}" does not exist: run `pkm init`, or set PKM_STREAM'
            ) from error
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"].get("Code") in _THROTTLED:
                return [reason(error)] * len(announcements)
            where = aws.endpoint("kinesis") or f"AWS in {aws.region(settings)}"
            raise UnreachableError(
                f'stream "{settings.stream}" at {where} did not take records: {reason(error)}'
            ) from error
        return [
            f"{result['ErrorCode']}: {result.get('ErrorMessage', '')}"
            if "ErrorCode" in result
            else Place(result["ShardId"], result["SequenceNumber"])
            for result in results
        ]

    return put
