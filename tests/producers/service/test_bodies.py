"""Bodies: no more of them than allowed, and not at any pace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from producers.service import bodies
from producers.service.problems import ProblemError


def request(messages: list[Any], *, headers: dict[str, str] | None = None) -> Request:
    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(3600)
        return messages.pop(0)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "headers": raw}, receive)


def message(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def read(source: Request, **options: Any) -> bytes:
    return asyncio.run(bodies.whole(source, max_bytes=10, **options))


def test_a_body_comes_whole() -> None:
    assert read(request([message(b"abc"), message(b""), message(b"def", more=False)])) == b"abcdef"


def test_a_body_is_refused_by_its_length_before_it_is_read() -> None:
    with pytest.raises(ProblemError, match="more than 10 bytes"):
        read(request([], headers={"content-length": "11"}))


def test_a_body_that_says_nothing_of_its_length_is_refused_in_its_course() -> None:
    with pytest.raises(ProblemError, match="more than 10 bytes"):
        read(request([message(bytes(6)), message(bytes(6))]))


def test_no_body_is_told() -> None:
    with pytest.raises(ProblemError, match="no body"):
        read(request([message(b"", more=False)]))


def test_a_client_that_goes_away_is_not_waited_for() -> None:
    with pytest.raises(ClientDisconnect):
        read(request([message(b"a"), {"type": "http.disconnect"}]))


def test_a_client_that_sends_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.05)
    with pytest.raises(ProblemError, match="Too slow"):
        read(request([message(b"a")]))


def test_a_client_that_drips_is_given_up_though_it_never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every byte takes a second, and the clock says so.
    times = iter(range(1000))
    drips = [message(b"a") for _ in range(100)]

    async def drain() -> int:
        count = 0
        async for _ in bodies.pieces(request(drips), max_bytes=1000, clock=lambda: float(next(times))):
            count += 1
        return count

    with pytest.raises(ProblemError, match="Too slow"):
        asyncio.run(drain())
    assert 85 < len(drips) < 95
