"""Two gigabytes through the service: its memory is that of some parts, whatever the size of the file."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from served import Served

pytestmark = pytest.mark.large

MEBIBYTE = 1024 * 1024
LARGE = 2 * 1024 * MEBIBYTE
SMALL = 64 * MEBIBYTE
MOST_GROWTH = 32 * MEBIBYTE


@pytest.fixture
def discarding_s3() -> Iterator[str]:
    child = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("discarding_s3.py")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    child.kill()
    child.communicate()


def upload(served: Served, size: int) -> float:
    """Send a file of `size` bytes, a mebibyte at a time; returns the seconds until it was accepted."""
    address = urlsplit(served.url)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
    tail = b"\r\n--b--\r\n"
    started = time.monotonic()
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=240)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Authorization", f"Bearer {served.token}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(len(head) + size + len(tail)))
    connection.endheaders(head)
    piece = bytes(range(256)) * 4096
    for _ in range(size // MEBIBYTE):
        connection.send(piece)
    connection.send(tail)
    answer = connection.getresponse()
    assert answer.status == 202, answer.read()
    orjson.loads(answer.read())
    connection.close()
    return time.monotonic() - started


def peak_bytes(served: Served) -> int:
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(280)
def test_memory_is_flat_for_two_gigabytes(
    serve: Callable[..., Served], discarding_s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve(AWS_ENDPOINT_URL_S3=discarding_s3, PKM_MAX_OBJECT_BYTES=str(3 * 1024 * MEBIBYTE))
    at_rest = peak_bytes(served)
    upload(served, SMALL)
    small = peak_bytes(served)
    seconds = upload(served, LARGE)
    large = peak_bytes(served)
    with capsys.disabled():
        peaks = ", ".join(f"{peak / MEBIBYTE:.0f}" for peak in (at_rest, small, large))
        print(f"\npeak memory at rest, after {SMALL // MEBIBYTE} and {LARGE // MEBIBYTE} MiB: {peaks} MiB")
        print(f"{LARGE / MEBIBYTE / seconds:.0f} MiB a second, with client and S3 on the same machine")
    assert large - small < MOST_GROWTH
    assert [record["content_size"] for record in served.records()] == [SMALL, LARGE]
