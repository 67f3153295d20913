"""A JSON API on loopback, for tests of what polls one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["Answer", "Api", "by_link", "note", "page_of", "serving_api"]

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Api:
    """An API on loopback: `answer` sees path and parameters; what was asked, and with which token, is kept."""

    answer: Callable[[str, dict[str, str]], Answer] = field(default=lambda path, parameters: (404, {}, b""))
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    drip: bool = False
    url: str = ""


@contextmanager
def serving_api() -> Iterator[Api]:
    """Serve an API that answers 404 until it is told otherwise."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            api.asked.append(self.path)
            api.tokens.add(self.headers["Authorization"])
            parts = urlsplit(self.path)
            status, headers, body = api.answer(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()})
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                if api.drip:
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.1)
                else:
                    self.wfile.write(body)
            except OSError:
                pass  # the client has left, as it should

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def note(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "text": f"# Note {number}", "updated": f"2026-11-{number:02}", **more}


def page_of(items: list[dict[str, Any]], **more: Any) -> bytes:
    return json.dumps({"data": items, **more}).encode()


def by_link(_path: str, parameters: dict[str, str]) -> Answer:
    number = int(parameters.get("page", "1"))
    headers = {"Link": f'</items?page={number + 1}>; rel="next"'} if number < 3 else {}
    return 200, headers, page_of([note(number * 2 - 1), note(number * 2)])
