"""Uploads where connections break, or another upload of the same object is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from core.errors import UnreachableError
from core.settings import Settings
from producers.items import SourceItem
from producers.uploads import Uploads

UNDER_WAY = (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
THERE = (412, b"<Error><Code>PreconditionFailed</Code></Error>")
TAKEN = (200, b"")
BROKEN = (0, b"")


@contextmanager
def bucket(answers: list[tuple[int, bytes]]) -> Iterator[str]:
    """Serve a bucket that gives these answers, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            if (status, body) == BROKEN:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_connection_that_breaks_is_not_the_end(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket([BROKEN, BROKEN, TAKEN]) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        assert asyncio.run(put(settings))


@pytest.mark.parametrize(("last", "uploaded"), [(TAKEN, True), (THERE, False)])
def test_an_object_that_somebody_else_uploads_just_now_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, last: tuple[int, bytes], uploaded: bool
) -> None:
    with bucket([UNDER_WAY, UNDER_WAY, last]) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        assert asyncio.run(put(settings)) is uploaded


def test_it_is_not_waited_for_for_ever(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = settings.model_copy(update={"retry_seconds": 0.3})
    with bucket([UNDER_WAY]) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(UnreachableError, match=r'did not take "a\.md".*the same command completes'):
            asyncio.run(put(impatient))


async def put(settings: Settings) -> bool:
    return (await Uploads(settings).put(SourceItem("files", "a.md", b"# A"))).uploaded
