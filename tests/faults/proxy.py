"""A proxy between the product and the local AWS that does what networks and services do on a bad day.

It speaks HTTP on loopback and passes requests on as they are; the local AWS checks no signatures. A rule says which
requests meet which fault, and how often; what happened is counted. Chance comes from a seed.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultProxy", "Kind", "Request", "fault_proxy"]

Kind = Literal[
    "slow-down",
    "error-after",
    "hang",
    "drop",
    "lost-response",
    "hold",
    "throttle",
    "expired",
    "broken-off",
    "cut-short",
]
"""slow-down: 503, nothing done. error-after: 500, but it was done. hang: no answer, nothing done, until the client
gives up. drop: the connection is reset, nothing done. lost-response: done, then the connection is reset. hold: the
request waits until `FaultProxy.release`, then it is done. throttle, expired: Kinesis' own refusals, nothing done.
broken-off: done, but the connection ends in the middle of the answer. cut-short: done, but the answer is only its
first half, as if it were whole."""

LONGEST_HANG_SECONDS = 120.0
_SCOPE = re.compile(r"Credential=[^/]+/\d+/[^/]+/(?P<service>[^/]+)/aws4_request")
_REFUSALS = {"throttle": "ProvisionedThroughputExceededException", "expired": "ExpiredIteratorException"}
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "expect"})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as rules see it: `service` is s3, glue or kinesis; `operation` the API's name, or S3's method."""

    service: str
    operation: str
    path: str


@dataclass(slots=True)
class Fault:
    """A rule: requests that match all patterns meet `kind`, each with chance `share`, at most `times` of them.

    Patterns are searched for (regular expressions); `after` lets so many matching requests through first.
    """

    kind: Kind
    service: str = ""
    operation: str = ""
    path: str = ""
    share: float = 1.0
    times: int | None = None
    after: int = 0

    def matches(self, request: Request) -> bool:
        patterns = zip((self.service, self.operation, self.path), astuple(request), strict=True)
        return all(re.search(pattern, value) for pattern, value in patterns)


@dataclass
class FaultProxy:
    """What a test holds: the rules, which may change at any time, and the counts."""

    upstream: str
    seed: int = 7
    rules: list[Fault] = field(default_factory=list)
    delay_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    """How many requests met a fault, by kind and by service."""
    passed: Counter[str] = field(default_factory=Counter)
    """How many were passed on, by service and operation (`glue UpdateTable`)."""
    writes: list[Request] = field(default_factory=list)
    """Requests that changed something, in order."""
    url: str = ""
    release: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    """Set when a request is being held."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.lock = threading.Lock()

    def fault_for(self, request: Request) -> Kind | None:
        """Decide what happens to a request, and count it."""
        with self.lock:
            for rule in self.rules:
                if rule.times == 0 or not rule.matches(request):
                    continue
                if rule.after:
                    rule.after -= 1
                    continue
                if self._random.random() < rule.share:
                    if rule.times is not None:
                        rule.times -= 1
                    self.faults.update([rule.kind, request.service])
                    return rule.kind
            return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A response goes out in one piece: no waiting for acknowledgements between headers and body.
    wbufsize = -1
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def _serve(self) -> None:
        body = self._body()
        request = self._request()
        if self.proxy.delay_seconds:
            self.proxy.release.wait(self.proxy.delay_seconds)
        kind = self.proxy.fault_for(request)
        if kind == "slow-down":
            self._refuse(request, 503, "SlowDown" if request.service == "s3" else "ServiceUnavailable")
            return
        if kind in ("drop", "hang"):
            if kind == "hang":
                self._wait_for_client()
            self._reset()
            return
        if kind in ("throttle", "expired"):
            self._refuse(request, 400, _REFUSALS[kind])
            return
        if kind == "hold":
            self.proxy.held.set()
            self.proxy.release.wait(LONGEST_HANG_SECONDS)
        status, headers, content = self._pass_on(body)
        with self.proxy.lock:
            self.proxy.passed[f"{request.service} {request.operation}"] += 1
        if status < 300 and request.operation not in ("GET", "HEAD"):
            self.proxy.writes.append(request)
        if kind == "lost-response":
            self._reset()
        elif kind == "error-after":
            self._refuse(request, 500, "InternalError")
        elif kind == "cut-short":
            self._answer(status, headers, content[: len(content) // 2])
        elif kind == "broken-off":
            self._answer(status, headers, content[: len(content) // 2], announced=len(content))
            self.close_connection = True
        else:
            self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the base class calls them

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _request(self) -> Request:
        scope = _SCOPE.search(self.headers.get("Authorization", ""))
        target = self.headers.get("X-Amz-Target", "")
        operation = target.rpartition(".")[2] or self.command
        return Request(scope["service"] if scope else "unsigned", operation, self.path)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        # The path style puts the bucket into the path, so that the host may be the upstream's own.
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=LONGEST_HANG_SECONDS)
        try:
            upstream.putrequest(self.command, self.path, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            upstream.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, announced: int | None = None
    ) -> None:
        self.send_response_only(status)
        # The answer to HEAD tells the size of what it does not carry.
        sizes = [value for name, value in headers if name.lower() == "content-length" and self.command == "HEAD"]
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", (sizes or [str(len(content))])[0])
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, request: Request, status: int, code: str) -> None:
        if request.service == "s3":
            content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>"
        else:
            content = f'{{"__type": "{code}", "message": "by the proxy"}}'
        self._answer(status, [("Content-Type", "text/xml")], b"" if self.command == "HEAD" else content.encode())

    def _wait_for_client(self) -> None:
        self.connection.settimeout(LONGEST_HANG_SECONDS)
        with contextlib.suppress(OSError):
            self.connection.recv(1)  # nothing comes but the end

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news here."""


@contextlib.contextmanager
def fault_proxy(upstream: str, *, seed: int = 7) -> Iterator[FaultProxy]:
    """Run a proxy in front of `upstream` (an address with scheme) on a port of its own."""
    proxy = FaultProxy(upstream, seed=seed)
    handler: type[_Handler] = type("Handler", (_Handler,), {"proxy": proxy})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
