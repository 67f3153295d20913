"""Events, fetchers and an S3 that fails as it is told, for the tests of fetching."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from obstore.store import S3Store

from builders import event_of
from core import aws
from core.records import Event, Failure
from core.settings import Settings
from operators import fetcher

__all__ = ["BODY", "event", "failure_of", "loopback_s3", "opened"]

BODY = b"# Hello\n" * 1000


def event(key: str, *, bucket: str, **changes: Any) -> Event:
    return event_of(event_id=f"id-{abs(hash(key))}", bucket=bucket, s3_key=key, **changes)


@contextmanager
def opened(settings: Settings, store: Any = None, **changes: Any) -> Iterator[fetcher.Fetcher]:
    options = {"bucket": settings.bucket, "max_object_bytes": 100_000, "concurrency": 8, **changes}
    made = fetcher.Fetcher(store or aws.object_store(settings), **options)
    try:
        yield made
    finally:
        made.close()


def failure_of(settings: Settings, one: Event, **changes: Any) -> Failure:
    with opened(settings, **changes) as made:
        (outcome,) = made.fetch([one])
    assert isinstance(outcome, Failure), outcome
    assert (outcome.step, outcome.event_id, outcome.s3_key) == ("fetch", one.event_id, one.s3_key)
    return outcome


class Answers:
    """An S3 on loopback that plays a list of answers per request number; keeps the last one."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.gate: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def next(self) -> str:
        with self._lock:
            answer = self.answers[min(self.requests, len(self.answers) - 1)]
            self.requests += 1
            return answer

    def enter(self, change: int) -> None:
        with self._lock:
            self.in_flight += change
            self.most_in_flight = max(self.most_in_flight, self.in_flight)


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that cancels its requests is what some tests are about."""


@contextmanager
def loopback_s3(answers: list[str]) -> Iterator[tuple[S3Store, Answers]]:
    script = Answers(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.enter(1)
            script.gate()
            answer = script.next()
            script.enter(-1)
            body = b"" if answer.isdigit() else BODY
            self.send_response(int(answer) if answer.isdigit() else 200)
            self.send_header("Content-Length", str(10**9 if answer == "huge" else len(body)))
            self.send_header("Last-Modified", "Mon, 23 Nov 2026 08:00:00 GMT")
            self.end_headers()
            if answer in ("broken", "huge"):
                self.wfile.write(body[:1000])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = _QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    store = S3Store(
        "bucket",
        config={"region": "us-east-1", "skip_signature": True},
        endpoint=f"http://127.0.0.1:{server.server_port}",
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={
            "max_retries": 3,
            "retry_timeout": timedelta(seconds=5),
            "backoff": {
                "init_backoff": timedelta(milliseconds=5),
                "max_backoff": timedelta(milliseconds=20),
                "base": 2,
            },
        },
    )
    try:
        yield store, script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
