"""The service as clients meet it: what is accepted is on S3 and on the stream, and what is not is told why."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from core.records import event_identity, note_identity
from core.settings import Settings

MEBIBYTE = 1024 * 1024


def problem(response: requests.Response, status: int, name: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"/docs#{name}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


def test_a_note_is_on_s3_and_on_the_stream_when_it_is_accepted(served: Any) -> None:
    text = "# Plan\n\nMeet Ada in Zürich.\n"
    response = served.post_note(
        text=text, title="Plan", session="s-1", identity="plan", metadata={"project": "Zürich"}
    )
    assert response.status_code == 202
    note_id, event_id = response.json()["note_id"], response.json()["event_id"]
    assert response.headers["Location"] == f"/v1/notes/{note_id}"
    assert note_id == note_identity("agent", "agents/named/plan")
    assert event_id == event_identity("agent", "agents/named/plan", text.encode())
    (record,) = [record for record in served.records() if record["event_id"] == event_id]
    assert record["partition_key"] == record["note_id"] == note_id
    assert record["content_type"] == "text/markdown"
    assert record["metadata"] == {
        "project": "Zürich",
        "agent": "agents",
        "session": "s-1",
        "identity": "plan",
        "title": "Plan",
    }
    assert served.content(record["s3_key"]) == text.encode()
    assert served.state(note_id)["state"] == "accepted"


def test_another_text_of_the_same_identity_is_a_new_version_and_the_same_text_none(served: Any) -> None:
    first, second, again = (served.post_note(text=text, identity="versions").json() for text in ("one", "two", "one"))
    assert first["note_id"] == second["note_id"] == again["note_id"]
    assert first["event_id"] == again["event_id"] != second["event_id"]


def test_without_an_identity_the_content_is_the_name(served: Any) -> None:
    before = len(served.keys("bronze/raw/agent/"))
    first, again, other = (served.post_note(text=text).json() for text in ("a text", "a text", "another"))
    assert first == again
    assert first["note_id"] != other["note_id"]
    assert len(served.keys("bronze/raw/agent/")) == before + 2


@pytest.mark.parametrize("size", [0, 11, 8 * MEBIBYTE, 8 * MEBIBYTE + 1, 16 * MEBIBYTE])
def test_a_file_arrives_whole_and_leaves_nothing_else(served: Any, size: int) -> None:
    content = os.urandom(size)
    response = served.post_file(content, "../a b.bin", identity=f"file of {size}")
    assert response.status_code == 202, response.text
    (record,) = [record for record in served.records() if record["event_id"] == response.json()["event_id"]]
    assert record["content_size"] == size
    assert record["content_sha256"] == hashlib.sha256(content).hexdigest()
    assert record["metadata"]["path"] == "a b.bin"
    assert served.content(record["s3_key"]) == content
    wait_until(lambda: served.keys("producers/service/uploads/") == [])


def test_the_same_file_again_is_the_same_object(served: Any) -> None:
    content = os.urandom(9 * MEBIBYTE)
    first = served.post_file(content).json()
    before = served.keys("bronze/raw/")
    assert served.post_file(content).json() == first
    assert served.keys("bronze/raw/") == before


def test_metadata_at_its_longest_is_taken_and_kept_whole(served: Any) -> None:
    metadata = {f"{number:02d}".ljust(64, "x"): "\u0001" * 2000 for number in range(20)}
    assert served.post_note(text="long", metadata=metadata).status_code == 202
    (key,) = served.keys("bronze/metadata/")
    assert len(served.content(key)) < 256 * 1024


def test_two_hundred_uploads_at_once_are_each_on_s3_and_on_the_stream_once(served: Any) -> None:
    before = {record["event_id"] for record in served.records()}
    contents = [f"# Upload {number}\n".encode() for number in range(200)]
    start = threading.Barrier(len(contents))

    def upload(content: bytes) -> requests.Response:
        start.wait()
        return requests.post(
            f"{served.url}/v1/files",
            headers={"Authorization": f"Bearer {served.token}"},
            files={"file": ("note.md", content)},
            timeout=120,
        )

    with ThreadPoolExecutor(len(contents)) as pool:
        responses = list(pool.map(upload, contents))
    assert [response.status_code for response in responses] == [202] * 200
    event_ids = [response.json()["event_id"] for response in responses]
    announced = [record for record in served.records() if record["event_id"] not in before]
    assert sorted(record["event_id"] for record in announced) == sorted(event_ids)
    stored = {record["event_id"]: record["s3_key"] for record in announced}
    assert [served.content(stored[event_id]) for event_id in event_ids] == contents


def test_a_key_answers_a_repeated_request_without_doing_it_again(served: Any) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first = served.post_note(text="once", headers=headers)
    count = len(served.records())
    again = served.post_note(text="once", headers=headers)
    assert again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(served.records()) == count
    problem(served.post_note(text="twice", headers=headers), 422, "idempotency-key-reused")
    problem(served.post_note(text="once", title="other", headers=headers), 422, "idempotency-key-reused")


def test_a_key_of_a_file_is_compared_without_uploading_it_again(served: Any) -> None:
    content = os.urandom(9 * MEBIBYTE)
    headers = {"Idempotency-Key": "key-2"}
    first = served.post_file(content, headers=headers)
    again = served.post_file(content, headers=headers)
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    before = served.keys("bronze/raw/")
    problem(served.post_file(os.urandom(9 * MEBIBYTE), headers=headers), 422, "idempotency-key-reused")
    assert served.keys("bronze/raw/") == before
    assert served.keys("producers/service/uploads/") == []


@pytest.mark.parametrize("token", [None, "wrong" * 8, "0123456789abcdef0123456789abcdeF", ""])
def test_who_has_no_token_is_refused(served: Any, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for method, path in (("POST", "/v1/notes"), ("POST", "/v1/files"), ("GET", "/v1/notes/x")):
        response = requests.request(method, served.url + path, headers=headers, timeout=10)
        problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        (b"", 400, "invalid-request"),
        (b"{", 400, "invalid-request"),
        (b'{"text": "\xff"}', 400, "invalid-request"),
        (b"[]", 422, "invalid-content"),
        (b'{"text": ""}', 422, "invalid-content"),
        (b'{"text": 1}', 422, "invalid-content"),
        (b'{"text": "a", "more": 1}', 422, "invalid-content"),
        (b'{"text": "a", "metadata": {"a": "\\u0000"}}', 422, "invalid-content"),
        (b'{"text": "a", "identity": "a\\nb"}', 422, "invalid-content"),
        (b'{"text": "' + b"a" * (256 * 1024 + 1) + b'"}', 422, "invalid-content"),
        (b" " * (4 * MEBIBYTE + 1), 413, "too-large"),
    ],
)
def test_a_note_that_does_not_fit_is_told_why(served: Any, body: bytes, status: int, name: str) -> None:
    response = served.request("POST", "/v1/notes", data=body, headers={"Content-Type": "application/json"})
    problem(response, status, name)


def test_what_does_not_fit_is_named_and_not_quoted(served: Any) -> None:
    response = served.post_note(text=5, metadata={"a b": "secret value"})
    body = problem(response, 422, "invalid-content")
    assert {error["pointer"].split("/")[1] for error in body["errors"]} == {"text", "metadata"}
    assert "secret value" not in response.text


def test_other_media_types_addresses_and_methods_are_refused(served: Any) -> None:
    response = served.request("POST", "/v1/notes", data=b"text", headers={"Content-Type": "text/plain"})
    problem(response, 415, "unsupported-media-type")
    problem(served.request("POST", "/v1/files", json={}), 415, "unsupported-media-type")
    problem(served.request("GET", "/v2"), 404, "not-found")
    response = served.request("DELETE", "/v1/notes/x")
    problem(response, 405, "method-not-allowed")
    assert "GET" in response.headers["Allow"]


def test_a_note_that_nobody_knows_is_not_found(served: Any) -> None:
    for note_id in ("0" * 32, "x", "a%20b", "%2e%2e", "a" * 200):
        problem(served.request("GET", f"/v1/notes/{note_id}"), 404, "not-found")


def test_a_file_above_the_limit_is_refused_at_its_header_and_in_its_course(served: Any) -> None:
    problem(served.post_file(bytes(17 * MEBIBYTE)), 413, "too-large")

    def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(18):
            yield bytes(MEBIBYTE)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(served.request("POST", "/v1/files", data=endless(), headers=headers), 413, "too-large")
    wait_until(lambda: unfinished(served.settings) == 0)
    assert served.keys("producers/service/uploads/") == []


def test_an_upload_whose_client_goes_away_leaves_nothing(served: Any, connection: socket.socket) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {15 * MEBIBYTE}\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    )
    connection.sendall(head.encode() + bytes(10 * MEBIBYTE))
    wait_until(lambda: unfinished(served.settings) == 1)
    connection.close()
    wait_until(lambda: unfinished(served.settings) == 0)
    assert '"status": 499' in served.logged()


def test_the_log_has_ids_and_states_but_no_content_and_no_tokens(served: Any) -> None:
    headers = {"X-Request-Id": "trace-7"}
    served.post_note(text="a private text", title="private title", identity="private-name", headers=headers)
    served.post_note(text="another", headers={"X-Request-Id": "not usable\u00e9"})
    served.request("GET", "/v1/private-path")
    text = served.logged()
    assert '"request_id": "trace-7"' in text
    assert "not usable" not in text
    assert "private" not in text
    assert served.token not in text


def test_the_reference_and_health_need_no_token_and_nothing_from_elsewhere(served: Any) -> None:
    page = requests.get(f"{served.url}/docs", timeout=10)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "script" not in page.text
    assert "http" not in page.text.replace("pkm_http", "")
    assert requests.get(f"{served.url}/openapi.json", timeout=10).json()["openapi"] == "3.1.0"
    health = requests.get(f"{served.url}/healthz", timeout=10)
    assert health.json() == {"status": "ready", "checks": {"s3": "ok", "kinesis": "ok"}}
    assert requests.get(f"{served.url}/healthz/live", timeout=10).status_code == 204


def test_what_is_not_http_and_headers_without_end_are_refused(served: Any) -> None:
    for sent in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000):
        with connect(served) as connection:
            connection.sendall(sent)
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in answer


@pytest.fixture
def connection(served: Any) -> Iterator[socket.socket]:
    with connect(served) as opened:
        yield opened


def connect(served: Any) -> socket.socket:
    address = urlsplit(served.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def unfinished(settings: Settings) -> int:
    from core import aws

    return len(aws.s3_client(settings).list_multipart_uploads(Bucket=settings.bucket).get("Uploads", []))


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def test_sigterm_finishes_what_is_in_flight(serve: Callable[..., Any]) -> None:
    served = serve()
    body = b'{"text": "half of it'
    head = (
        f"POST /v1/notes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body) + 2}\r\n\r\n"
    )
    with connect(served) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.3)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(b'"}')
        assert connection.recv(4096).startswith(b"HTTP/1.1 202 ")
    assert served.process.wait(5) == 0
    assert [served.content(record["s3_key"]) for record in served.records()[-1:]] == [b"half of it"]
