"""A small web site on loopback, of pages that behave and of pages that don't, for tests."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GIBIBYTE = 1024**3


@dataclass(frozen=True)
class Page:
    """What the server answers. With `tagged`, it has an ETag and answers conditional requests."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "text/html; charset=utf-8"})
    tagged: bool = False


class Handler(BaseHTTPRequestHandler):
    """Answers from the site's pages, and writes down who asked for what."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        with self.site.lock:
            self.site.requests.append((self.path, dict(self.headers)))
            self.site.times.append(time.monotonic())
        page = self.site.pages.get(self.path) or self.site.pages.get(self.path.partition("?")[0])
        if callable(page):
            self.close_connection = True
            with contextlib.suppress(OSError):
                page(self)
            return
        page = page or Page(b"not here", 404)
        tag = f'"{hashlib.sha256(page.body).hexdigest()[:16]}"'
        if page.tagged and self.headers["If-None-Match"] == tag:
            page = Page(b"", 304, {}, tagged=True)
        self.send_response(page.status)
        if page.tagged:
            self.send_header("ETag", tag)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if page.status != 304:
            self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def start(self, *headers: str) -> None:
        """Send the head of an answer that ends when the connection does."""
        self.wfile.write(
            "\r\n".join(
                ["HTTP/1.1 200 OK", "Content-Type: text/html", "Connection: close", *headers, "", ""]
            ).encode()
        )

    def send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.site.sent_bytes += len(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Site:
    """Pages by path (with query, else without), and the requests that came, each with its headers and time."""

    pages: dict[str, Page | Callable[[Handler], None]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent_bytes: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[str]:
        """The paths that were asked for, without robots.txt."""
        return [path for path, _ in self.requests if path != "/robots.txt"]


def html(text: str, *links: str, head: str = "", tagged: bool = False) -> Page:
    anchors = "".join(f'<p><a href="{link}">to {link}</a></p>' for link in links)
    return Page(
        f"<!doctype html><html><head>{head}</head><body><p>{text}</p>{anchors}</body></html>".encode(), tagged=tagged
    )


def redirect(to: str, status: int = 302) -> Page:
    return Page(b"", status, {"Location": to})


def endless(handler: Handler) -> None:
    """A page of one gibibyte, without a length."""
    handler.start()
    for _ in range(GIBIBYTE // 65536):
        handler.send(b"<p>more of it</p>".ljust(65536))


def bomb(size_bytes: int = 64 * 1024**2, *, layers: int = 1) -> Page:
    """A page of many letters that is small on the wire."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    body = b"".join(packer.compress(b"a" * 1024**2) for _ in range(size_bytes // 1024**2)) + packer.flush()
    for _ in range(layers - 1):
        body = gzip.compress(body)
    encodings = ", ".join(["gzip"] * layers)
    return Page(body, headers={"Content-Type": "text/html", "Content-Encoding": encodings})


def dripping(piece: bytes) -> Callable[[Handler], None]:
    """A page of which a piece comes every 50 ms, for ten seconds."""

    def drip(handler: Handler) -> None:
        if not piece.endswith(b"\r\n"):
            handler.start()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            handler.send(piece)
            time.sleep(0.05)

    return drip


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news here."""


@contextmanager
def web_site(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Run an empty site on a port of its own."""
    site = Site()
    handler: type[Handler] = type("SiteHandler", (Handler,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    if tls is not None:
        # The handshake belongs to the connection's thread: a client that breaks it off must not stop the server.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
