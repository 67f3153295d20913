"""Servers that mean harm, or are none: bounded in size and time, and told as they are."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from core.errors import MissingError, PkmError, SourceError, UnreachableError
from core.settings import Settings
from git_servers import serving
from producers.git.names import parse_location
from producers.git.server import GitServer

LITTLE = Settings(allow_private_addresses=True, git_pack_bytes=50_000, git_seconds=1.0, request_seconds=0.5)
COMMIT = "1" * 40
# Whoever closes a connection with something unread in it resets it, sooner or later than the other side looks.
EITHER = (SourceError, UnreachableError)


def line(text: bytes) -> bytes:
    return b"%04x" % (len(text) + 4) + text


VERSION_2 = line(b"version 2\n") + line(b"ls-refs\n") + line(b"fetch=shallow filter\n") + b"0000"
REFS = line(COMMIT.encode() + b" HEAD\n") + b"0000"


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server for git:// that does with a connection what the test says."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1_000)
                    answer(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"git://127.0.0.1:{listener.getsockname()[1]}/a.git"
    finally:
        stopped.set()
        # Wakes the thread that waits for a connection.
        socket.create_connection(listener.getsockname()).close()
        thread.join(5)
        listener.close()


def fetch(address: str) -> None:
    server = GitServer(parse_location(address, settings=LITTLE), LITTLE)
    try:
        server.refs([b"HEAD"])
        server.fetch([COMMIT], depth=1, without_blobs=True)
    finally:
        server.close()


def send(*parts: bytes, pause: float = 0.0, times: int = 1) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for _ in range(times):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)

    return answer


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (send(b""), SourceError, "refused, or is no git server"),
        (send(b"SSH-2.0-OpenSSH\r\n"), EITHER, "refused, or is no git server|does not answer as|reached"),
        (
            send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            EITHER,
            "refused, or is no git server|does not answer as|reached",
        ),
        (send(b"ffff", os.urandom(100)), SourceError, "refused, or is no git server"),
        (send(line(b"ERR access denied\x1b[2J\n")), SourceError, r"access denied\\x1b\[2J"),
        (send(VERSION_2, REFS, line(b"packfile\n"), line(b"\x03out of cheese\n")), EITHER, "refused|reached"),
        (send(VERSION_2, line(b"2" * 64 + b" HEAD\n") + b"0000"), EITHER, "."),
        (send(line(b"version 2\n"), line(b"x" * 60_000), times=2_000), SourceError, "PKM_GIT_PACK_BYTES"),
        (send(VERSION_2, pause=0.05, times=100), EITHER, "."),
        (send(*(bytes([byte]) for byte in VERSION_2 * 5), pause=0.1), UnreachableError, "longer than 1 s"),
        (lambda _: time.sleep(1.2), UnreachableError, "timed out|longer than"),
    ],
)
def test_an_answer_that_is_none_is_told_in_time(
    answer: Callable[[socket.socket], None], error: Any, says: str
) -> None:
    began = time.monotonic()
    with answering(answer) as address, pytest.raises(error, match=says):
        fetch(address)
    assert time.monotonic() - began < 10


def packed(data: bytes, *, times: int = 1) -> Callable[[socket.socket], None]:
    """A whole conversation, the pack in pieces of the side band."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(VERSION_2)
        connection.recv(1_000)
        connection.sendall(REFS)
        if not connection.recv(1_000):
            return
        connection.sendall(line(b"packfile\n"))
        for _ in range(times):
            connection.sendall(line(b"\x01" + data))
        connection.sendall(b"0000")

    return answer


def test_a_pack_without_end_is_cut_off() -> None:
    endless = packed(bytes(10_000), times=10_000)
    with answering(endless) as address, pytest.raises(SourceError, match="more than 50,000 bytes: set PKM_GIT_PACK"):
        fetch(address)


def test_progress_without_end_is_cut_off() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(VERSION_2)
        connection.recv(1_000)
        connection.sendall(REFS)
        if connection.recv(1_000):
            connection.sendall(line(b"packfile\n"))
            for _ in range(2_000):
                connection.sendall(line(b"\x02" + b"almost done " * 5_000))

    with answering(answer) as address, pytest.raises((SourceError, UnreachableError)):
        fetch(address)


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.binary(max_size=40)
        | st.binary(max_size=40).map(line)
        | st.sampled_from([VERSION_2, REFS, b"0000", b"0001", b"0002", line(b"packfile\n"), line(b"\x01PACK")]),
        max_size=6,
    )
)
def test_any_answer_ends_in_an_error_of_ours(parts: list[bytes]) -> None:
    with answering(send(*parts)) as address, pytest.raises(PkmError):
        fetch(address)


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}/a.git"


def reply(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (reply(200, b"<html>", Content_Type="text/html"), SourceError, "smart protocol"),
        (
            reply(200, COMMIT.encode() + b"\trefs/heads/main\n", Content_Type="text/plain"),
            SourceError,
            "smart protocol",
        ),
        (reply(403), MissingError, "not for us"),
        (reply(404), MissingError, "no git repository"),
        (reply(418), SourceError, "HTTP 418"),
        (reply(500), UnreachableError, "out of order"),
        (reply(429), UnreachableError, "out of order"),
        (reply(302, Location="ftp://example.org/"), SourceError, "."),
        (
            reply(200, b"x", Content_Type="application/x-git-upload-pack-advertisement"),
            SourceError,
            "no git server|answer",
        ),
        (
            reply(200, b"x", Content_Type="application/x-git-upload-pack-advertisement", Content_Encoding="gzip"),
            SourceError,
            "does not answer as a git server does",
        ),
        (
            reply(
                200,
                line(b"version 2\n") + line(b"x" * 60_000) * 2_000,
                Content_Type="application/x-git-upload-pack-advertisement",
            ),
            SourceError,
            "PKM_GIT_PACK_BYTES",
        ),
    ],
)
def test_a_web_server_that_is_no_git_server_is_told_apart(answer: Any, error: Any, says: str) -> None:
    with web(answer) as address, pytest.raises(PkmError, match=says) as raised:
        fetch(address)
    assert isinstance(raised.value, error) or says == "."
