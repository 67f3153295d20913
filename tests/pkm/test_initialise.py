"""What `pkm init` makes of a bucket: missing, ours, somebody else's, in another region."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from core import aws
from core.errors import UnreachableError
from core.settings import Settings
from pkm.initialise import initialise


@pytest.fixture
def bare(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings without models and without a bucket."""
    aws.s3_client(settings).delete_bucket(Bucket=settings.bucket)
    return settings.model_copy(update={"enrich": "none"})


@pytest.fixture
def refusing_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 whose buckets are all somebody else's, as AWS answers then."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_everything_is_made_once_and_a_second_time_changes_nothing(bare: Settings) -> None:
    first = initialise(bare)

    assert initialise(bare) == first
    assert first["bucket"] == bare.bucket


def test_a_bucket_is_made_in_the_region_of_the_settings(bare: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")

    initialise(bare)

    location = aws.s3_client(bare).get_bucket_location(Bucket=bare.bucket)
    assert location["LocationConstraint"] == "eu-central-1"
    assert initialise(bare)["bucket"] == bare.bucket


def test_a_bucket_of_somebody_else_is_refused_in_one_line(bare: Settings, refusing_s3: None) -> None:
    with pytest.raises(UnreachableError, match=rf'bucket "{bare.bucket}" can\'t be used.*PKM_BUCKET') as raised:
        initialise(bare)
    assert "\n" not in str(raised.value)
