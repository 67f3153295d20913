"""The HTTP service while S3 hangs: it ends in time all the same, and its requests can be repeated."""

from __future__ import annotations

import signal
import socket
import time
from urllib.parse import urlsplit

import pytest

from core.settings import Settings
from faults.proxy import Fault, FaultProxy
from pkm.initialise import initialise
from served import serving

pytestmark = pytest.mark.faults

MEBIBYTE = 1024 * 1024


def test_it_ends_within_eight_seconds_though_s3_hangs(settings: Settings, proxy: FaultProxy) -> None:
    initialise(settings.model_copy(update={"enrich": "none", "shards": 1}))
    with serving(settings, AWS_ENDPOINT_URL_S3=proxy.url) as served:
        proxy.rules = [Fault("hold", service="s3")]
        address = urlsplit(served.url)
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {15 * MEBIBYTE}\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        )
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + bytes(10 * MEBIBYTE))
            assert proxy.held.wait(10)
            started = time.monotonic()
            served.stop(signal.SIGTERM)
        assert time.monotonic() - started < 8
    proxy.rules = []
    with serving(settings, AWS_ENDPOINT_URL_S3=proxy.url) as served:
        assert served.post_file(bytes(10 * MEBIBYTE)).status_code == 202
