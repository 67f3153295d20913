"""The HTTP service that is ended while clients are slow or S3 hangs: in time, and its requests can be repeated."""

from __future__ import annotations

import signal
import socket
import time
from urllib.parse import urlsplit

import pytest

from core import aws
from core.settings import Settings
from faults.proxy import Fault, FaultProxy
from pkm.initialise import initialise
from served import Served, serving

pytestmark = pytest.mark.faults

MEBIBYTE = 1024 * 1024


def begin_upload(served: Served) -> socket.socket:
    """Send two thirds of a file, more than one part, and stop."""
    address = urlsplit(served.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {15 * MEBIBYTE}\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    )
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(head.encode() + bytes(10 * MEBIBYTE))
    return connection


def unfinished(settings: Settings) -> int:
    return len(aws.s3_client(settings).list_multipart_uploads(Bucket=settings.bucket).get("Uploads", []))


@pytest.fixture
def lake(settings: Settings) -> Settings:
    initialise(settings.model_copy(update={"enrich": "none", "shards": 1}))
    return settings


def test_sigterm_cuts_off_within_eight_seconds_what_does_not_finish(lake: Settings) -> None:
    with serving(lake) as served, begin_upload(served):
        deadline = time.monotonic() + 10
        while unfinished(lake) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = time.monotonic()
        assert served.stop(signal.SIGTERM) == 0
        assert time.monotonic() - started < 8
    assert unfinished(lake) == 0
    assert served.keys("producers/service/uploads/") == []


def test_it_ends_within_eight_seconds_though_s3_hangs(lake: Settings, proxy: FaultProxy) -> None:
    with serving(lake, AWS_ENDPOINT_URL_S3=proxy.url) as served:
        proxy.rules = [Fault("hold", service="s3")]
        with begin_upload(served):
            assert proxy.held.wait(10)
            started = time.monotonic()
            served.stop(signal.SIGTERM)
        assert time.monotonic() - started < 8
    proxy.rules = []
    with serving(lake, AWS_ENDPOINT_URL_S3=proxy.url) as served:
        assert served.post_file(bytes(10 * MEBIBYTE)).status_code == 202
