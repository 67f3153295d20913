"""The event loop on a thread: results, time limits and its end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from core.async_thread import AsyncThread


async def _name_of_thread() -> str:
    return threading.current_thread().name


def test_work_runs_on_a_thread_of_its_own_that_ends_with_the_block() -> None:
    with AsyncThread("loop-under-test") as thread:
        assert thread.run(_name_of_thread(), seconds=5) == "loop-under-test"
    assert "loop-under-test" not in [thread.name for thread in threading.enumerate()]


def test_work_that_takes_too_long_is_cancelled() -> None:
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with AsyncThread("loop-under-test") as thread, pytest.raises(TimeoutError):
        thread.run(forever(), seconds=0.01)
    assert cancelled.is_set()


def test_an_error_of_the_work_reaches_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("bad")

    with AsyncThread("loop-under-test") as thread, pytest.raises(ValueError, match="bad"):
        thread.run(fail(), seconds=5)


def test_closing_twice_does_nothing() -> None:
    thread = AsyncThread("loop-under-test")
    thread.close()
    thread.close()
