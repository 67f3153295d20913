"""Readiness: asked often, looked at seldom, failing when one of the checks does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from core.errors import UnreachableError
from producers.service import health
from producers.service.health import Readiness


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_looked_at_once_for_many_that_ask() -> None:
    looked: list[int] = []
    clock = Clock()

    async def run() -> None:
        readiness = Readiness({"s3": lambda: looked.append(1)}, clock=clock)
        answers = await asyncio.gather(*(readiness.health() for _ in range(50)))
        assert {answer.status for answer in answers} == {"ready"}
        assert len(looked) == 1
        clock.now += health.KEEP_SECONDS
        await readiness.health()
        assert len(looked) == 2

    asyncio.run(run())


def test_what_fails_or_does_not_answer_is_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.05)
    hanging = threading.Event()

    def fail() -> None:
        raise UnreachableError("s3://secret-bucket is down")

    async def run() -> None:
        readiness = Readiness({"a": lambda: None, "b": fail, "c": lambda: hanging.wait(10) and None})
        answer = await readiness.health()
        hanging.set()
        assert answer.status == "failing"
        assert answer.checks == {"a": "ok", "b": "failing", "c": "failing"}

    asyncio.run(run())


def test_a_service_that_stops_is_not_ready() -> None:
    async def run() -> None:
        readiness = Readiness({"a": lambda: None})
        readiness.stopping = True
        assert (await readiness.health()).status == "stopping"

    asyncio.run(run())
