"""The gate: so many at once, so many in line, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from producers.service.gate import Gate
from producers.service.problems import ProblemError


def test_so_many_are_let_in_at_once() -> None:
    async def run() -> int:
        gate, inside, most = Gate(3, waiting=100, seconds=5), 0, 0

        async def enter() -> None:
            nonlocal inside, most
            async with gate.place():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(enter() for _ in range(50)))
        return most

    assert asyncio.run(run()) == 3


def test_the_line_has_an_end_and_who_waits_too_long_is_sent_away() -> None:
    async def run() -> None:
        gate = Gate(1, waiting=1, seconds=0.05)
        async with gate.place():
            waiting = asyncio.create_task(gate.place().__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(ProblemError, match="are waiting") as refused:
                await gate.place().__aenter__()
            assert refused.value.kind.status == 503
            assert refused.value.retry_after_seconds
            with pytest.raises(ProblemError, match="at once"):
                await waiting
        async with gate.place():
            pass

    asyncio.run(run())


def test_a_place_comes_back_from_who_fails_and_who_gives_up() -> None:
    async def run() -> None:
        gate = Gate(1, waiting=5, seconds=1)

        async def fail() -> None:
            async with gate.place():
                gone = asyncio.create_task(gate.place().__aenter__())
                await asyncio.sleep(0)
                gone.cancel()
                raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await fail()
        async with gate.place():
            pass

    asyncio.run(run())
