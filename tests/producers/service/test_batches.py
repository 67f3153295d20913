"""Announcements of many requests: few calls, a result for each, order within a note, an end to patience."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from announced import Refusing, records
from core.errors import MissingError, UnreachableError
from core.settings import Settings
from producers.service import batches
from producers.service.batches import Announcer, Place, put_on_stream
from producers.stream import Announcement


class Stream:
    """Takes records in memory; what `refused` says is not taken, call by call."""

    def __init__(self, *refused: set[int]) -> None:
        self.calls: list[list[str]] = []
        self.taken: list[Announcement] = []
        self._refused = iter(refused)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, announcements: Sequence[Announcement], /) -> list[Place | str]:
        assert self.gate.wait(10)
        self.calls.append([each.note_id for each in announcements])
        refused = next(self._refused, set())
        self.taken += [each for index, each in enumerate(announcements) if index not in refused]
        return [
            "slow down" if index in refused else Place("shard", str(index)) for index in range(len(announcements))
        ]


def announcing(work: Callable[[Announcer], Awaitable[None]], put: batches.PutRecords, **options: float) -> None:
    async def run() -> None:
        announcer = Announcer(put, **options)
        try:
            await work(announcer)
        finally:
            await announcer.close()

    asyncio.run(run())


def test_what_arrives_together_goes_together() -> None:
    stream = Stream()

    async def work(announcer: Announcer) -> None:
        places = await asyncio.gather(*(announcer.announce(Announcement(str(n), b"{}")) for n in range(1100)))
        assert len(places) == 1100

    announcing(work, stream)
    assert [len(call) for call in stream.calls] == [500, 500, 100]


def test_a_call_has_at_most_five_mebibytes() -> None:
    stream = Stream()

    async def work(announcer: Announcer) -> None:
        await asyncio.gather(*(announcer.announce(Announcement(str(n), bytes(1_000_000))) for n in range(12)))

    announcing(work, stream)
    assert [len(call) for call in stream.calls] == [5, 5, 2]


def test_each_hears_of_its_own_record_and_refused_ones_are_sent_again() -> None:
    stream = Stream({1}, {0})

    async def work(announcer: Announcer) -> None:
        await asyncio.gather(*(announcer.announce(Announcement(str(n), b"{}")) for n in range(3)))

    announcing(work, stream)
    assert stream.calls == [["0", "1", "2"], ["1"], ["1"]]


def test_versions_of_a_note_keep_their_order_though_the_first_is_refused() -> None:
    stream = Stream({0}, {0})

    async def work(announcer: Announcer) -> None:
        versions = [Announcement("note", str(number).encode()) for number in range(4)]
        await asyncio.gather(*(announcer.announce(version) for version in versions))

    announcing(work, stream)
    assert [each.data for each in stream.taken] == [b"0", b"1", b"2", b"3"]
    assert all(len(call) == 1 for call in stream.calls)


def test_a_stream_that_refuses_for_ever_is_told_to_whom_it_concerns_alone() -> None:
    async def work(announcer: Announcer) -> None:
        refused, taken = await asyncio.gather(
            announcer.announce(Announcement("bad", b"{}")),
            announcer.announce(Announcement("good", b"{}")),
            return_exceptions=True,
        )
        assert isinstance(refused, UnreachableError)
        assert "slow down" in str(refused)
        assert isinstance(taken, Place)

    class OneRefused(Stream):
        def __call__(self, announcements: Sequence[Announcement], /) -> list[Place | str]:
            return ["slow down" if each.note_id == "bad" else Place("s", "1") for each in announcements]

    announcing(work, OneRefused(), patience_seconds=0.3)


def test_a_call_that_fails_is_told_to_all_of_it_and_the_next_goes_through() -> None:
    class Failing(Stream):
        def __call__(self, announcements: Sequence[Announcement], /) -> list[Place | str]:
            if not self.calls:
                self.calls.append([])
                raise UnreachableError("down")
            return super().__call__(announcements)

    async def work(announcer: Announcer) -> None:
        for _ in range(2):
            results = await asyncio.gather(
                *(announcer.announce(Announcement(str(n), b"{}")) for n in range(2)), return_exceptions=True
            )
            outcomes.append([type(result) for result in results])

    outcomes: list[list[type]] = []
    announcing(work, Failing())
    assert outcomes == [[UnreachableError] * 2, [Place] * 2]


def test_a_record_whose_request_has_gone_is_not_sent() -> None:
    stream = Stream()

    async def work(announcer: Announcer) -> None:
        gone = asyncio.create_task(announcer.announce(Announcement("gone", b"{}")))
        await asyncio.sleep(0)
        gone.cancel()
        await announcer.announce(Announcement("there", b"{}"))

    announcing(work, stream)
    assert stream.calls == [["there"]]


def test_too_many_that_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WAITING_RECORDS", 2)

    async def work(announcer: Announcer) -> None:
        results = await asyncio.gather(
            *(announcer.announce(Announcement(str(n), b"{}")) for n in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [Place, Place, UnreachableError]

    announcing(work, Stream())


def test_closing_ends_those_that_wait_for_a_call_that_hangs() -> None:
    stream = Stream()
    stream.gate.clear()

    async def run() -> None:
        announcer = Announcer(stream)
        waiting = [asyncio.create_task(announcer.announce(Announcement("note", b"{}"))) for _ in range(2)]
        await asyncio.sleep(0.05)
        await announcer.close()
        await asyncio.wait(waiting, timeout=5)
        assert all(task.cancelled() for task in waiting)
        stream.gate.set()

    asyncio.run(run())


def test_a_real_stream_says_where_it_put_each_record(settings: Settings, kinesis: object) -> None:
    put = put_on_stream(Refusing(kinesis, iter([{1}])), settings)
    answers = put([Announcement(name, b'{"a": 1}') for name in ("a", "b")])
    assert isinstance(answers[0], Place)
    assert answers[0].shard_id == "shardId-000000000000"
    assert answers[1] == "ProvisionedThroughputExceededException: slow down"
    assert [record["partition_key"] for record in records(kinesis, settings)] == ["a"]


def test_a_missing_stream_is_named(settings: Settings, kinesis: object) -> None:
    elsewhere = settings.model_copy(update={"stream": "no-such-stream"})
    with pytest.raises(MissingError, match="no-such-stream"):
        put_on_stream(kinesis, elsewhere)([Announcement("a", b"{}")])  # type: ignore[arg-type]
