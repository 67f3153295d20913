"""Connections: a header has its time, and so has what comes after an answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from producers.service import protocol
from producers.service.protocol import BoundedProtocol

SECONDS = 0.3


async def answering(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", SECONDS)
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answering, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(10)
    listening.close()


def drip(connection: socket.socket) -> float:
    """Send a byte now and then until the connection breaks; returns how many seconds that took."""
    started = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - started < 5:
            connection.sendall(b"X")
            time.sleep(0.05)
    return time.monotonic() - started


def ends_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1000) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:"])
def test_a_connection_without_a_whole_header_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert ends_within(connection, 5)


def test_a_header_that_drips_is_closed_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        assert drip(connection) < 5


def test_a_slow_answer_is_waited_for_and_the_connection_kept_for_a_while(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.settimeout(5)
            answer = b""
            while not answer.endswith(b"ok"):
                answer += connection.recv(1000)
        assert ends_within(connection, 5)


def test_a_body_that_goes_on_after_the_answer_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert drip(connection) < 5


def test_too_many_connections_are_closed_at_once(address: tuple[str, int]) -> None:
    with (
        socket.create_connection(address),
        socket.create_connection(address),
        socket.create_connection(address) as third,
    ):
        assert ends_within(third, SECONDS / 2)
