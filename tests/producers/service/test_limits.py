"""What the service refuses: to start where it is not safe, too many requests, and what S3 or the stream refuse."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr

from core.errors import PkmError, SettingsError, UnreachableError
from core.settings import Settings
from faults.proxy import Fault, FaultProxy, fault_proxy
from producers.service.server import serve as serve_here
from served import TOKEN, Served, serving

TOKENS = SecretStr(f"agents:{TOKEN}")


@pytest.fixture
def proxy(aws_environment: dict[str, str]) -> Iterator[FaultProxy]:
    with fault_proxy(aws_environment["AWS_ENDPOINT_URL"]) as running:
        yield running


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        (None, {}, SettingsError, "PKM_SERVE_TOKENS names no token"),
        (None, {"host": "0.0.0.0", "without_tokens": True}, SettingsError, "0.0.0.0 is not a loopback address"),
        (None, {"host": "::", "without_tokens": True}, SettingsError, ":: is not a loopback address"),
        (None, {"host": "localhost", "without_tokens": True}, SettingsError, "localhost is not a loopback address"),
        (TOKENS, {"without_tokens": True}, SettingsError, "leave out one of them"),
        (SecretStr("agents:short"), {}, SettingsError, "fewer than 24 characters"),
        (TOKENS, {"host": "192.0.2.1"}, UnreachableError, "192.0.2.1 port 0 can't be listened on"),
    ],
)
def test_it_does_not_start_where_it_is_not_safe(
    tokens: SecretStr | None, options: dict[str, Any], error: type[PkmError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        serve_here(Settings(serve_tokens=tokens), **{"host": "127.0.0.1", "port": 0, **options})


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnreachableError, match=f"port {port} can't be listened on"):
            serve_here(Settings(serve_tokens=TOKENS), host="127.0.0.1", port=port)
        with pytest.raises(UnreachableError, match=f"port {port} can't be listened on"):
            serve_here(Settings(serve_tokens=TOKENS), host="127.0.0.1", port=0, metrics_port=port)


def test_one_machine_can_be_served_without_tokens_and_each_name_has_its_rate(serve: Callable[..., Served]) -> None:
    served = serve("--without-tokens", token=None, PKM_SERVE_BURST="3", PKM_SERVE_REQUESTS_PER_SECOND="0.1")
    document = served.request("GET", "/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    # Pages in a browser on the same machine, which may post forms to any address.
    for headers in (
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Host": "example.org"},
        {"Host": "127.evil:1"},
    ):
        refused = served.post_file(b"a", headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (403, "/docs#forbidden")
    answers = [served.post_note(text=str(number), headers={"Host": "localhost:1"}) for number in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert answers[3].json()["type"] == "/docs#too-many-requests"
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 10
    assert served.request("GET", "/healthz").status_code == 200


def test_what_s3_or_the_stream_refuse_is_unavailable_until_it_is_repeated(
    serve: Callable[..., Served], proxy: FaultProxy
) -> None:
    served = serve(AWS_ENDPOINT_URL=proxy.url, PKM_RETRY_SECONDS="0.5", PKM_REQUEST_SECONDS="5")
    for rule in (
        Fault("drop", service="kinesis", operation="PutRecords"),
        Fault("slow-down", service="s3", operation="PUT", path="bronze/raw/agent"),
        Fault("slow-down", service="s3", operation="PUT", path="receipts"),
        Fault("slow-down", service="s3", operation="GET", path="receipts"),
    ):
        proxy.rules = [rule]
        text, headers = f"{rule.service} {rule.operation} {rule.path}", {"Idempotency-Key": "again"}
        headers["Idempotency-Key"] += text.replace(" ", "-")
        refused = (
            served.request("GET", f"/v1/notes/{'0' * 32}")
            if rule.operation == "GET"
            else served.post_note(text=text, headers=headers)
        )
        assert refused.status_code == 503, rule
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["type"] == "/docs#unavailable"
        proxy.rules = []
        assert served.post_note(text=text, headers=headers).status_code == 202
    proxy.rules = [Fault("drop", service="s3")]
    health = served.request("GET", "/healthz")
    assert health.status_code == 503
    assert health.json()["checks"]["s3"] == "failing"
    # Where it is, is told to the log alone.
    assert served.settings.bucket not in health.text
    assert served.settings.bucket in served.logged()


def test_killed_between_s3_and_the_stream_a_repeated_request_completes(lake: Settings, proxy: FaultProxy) -> None:
    headers = {"Idempotency-Key": "survivor"}
    proxy.rules = [Fault("hold", service="kinesis", operation="PutRecords")]
    with serving(lake, AWS_ENDPOINT_URL_KINESIS=proxy.url) as first, ThreadPoolExecutor() as pool:
        before = len(first.records())
        lost = pool.submit(first.post_file, b"# Survivor\n", headers=headers, identity="survivor")
        assert proxy.held.wait(20)
        (key,) = first.keys("bronze/raw/upload/")
        assert first.content(key) == b"# Survivor\n"
        first.stop(signal.SIGKILL)
        assert isinstance(lost.exception(20), OSError)
    # Another replica, or the same one again.
    with serving(lake) as second:
        assert len(second.records()) == before
        note_id = second.keys("producers/service/receipts/")
        answer = second.post_file(b"# Survivor\n", headers=headers, identity="survivor")
        assert answer.status_code == 202
        assert "Idempotent-Replayed" not in answer.headers
        assert second.keys("bronze/raw/upload/") == [key]
        assert [record["s3_key"] for record in second.records()[before:]] == [key]
        assert second.keys("producers/service/receipts/") != note_id
        assert second.post_file(b"# Survivor\n", headers=headers, identity="survivor").json() == answer.json()
        assert len(second.records()) == before + 1
