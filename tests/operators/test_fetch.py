"""Proves that objects arrive whole and in order, that bad ones become failures, and that faults are retried."""

from __future__ import annotations

import gc
import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import bytewax.operators as op
import obstore
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from obstore.store import S3Store

from builders import event_of
from core import aws
from core.errors import MissingError, UnreachableError
from core.layout import long_metadata_key
from core.records import Event, Failure, FetchedEvent, Position, RawRecord
from core.settings import Settings
from faults.proxy import Fault, fault_proxy
from operators import fetch, fetcher
from operators.parse import parse_record

BODY = b"# Hello\n" * 1000
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


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


def test_objects_arrive_whole_and_in_order_with_deletions_and_failures_among_them(settings: Settings) -> None:
    store = aws.object_store(settings)
    events = []
    for number in range(40):
        key = f"raw/ü {number}#?.md"
        if number % 10 == 3:
            events.append(event(key, bucket=settings.bucket, deleted=True))
        else:
            if number % 10 != 4:
                obstore.put(store, key, b"%d" % number)
            events.append(event(key, bucket=settings.bucket))
    fetched: list[FetchedEvent] = []
    failures: list[Failure] = []
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(events, batch_size=16))
    out = fetch.content("fetch", stream, objects=fetch.Objects(settings))
    op.output("fetched", out.fetched, TestingSink(fetched))
    op.output("failures", out.failures, TestingSink(failures))
    run_main(flow)
    assert [(found.event, found.content) for found in fetched] == [
        (one, b"" if one.deleted else b"%d" % number) for number, one in enumerate(events) if number % 10 != 4
    ]
    assert [(found.error, found.s3_key) for found in failures] == [
        ("MissingObject", one.s3_key) for number, one in enumerate(events) if number % 10 == 4
    ]


def test_two_workers_of_one_process_share_a_client(settings: Settings) -> None:
    store = aws.object_store(settings)
    for number in range(20):
        obstore.put(store, f"{number}", b"%d" % number)
    events = [event(f"{number}", bucket=settings.bucket) for number in range(20)]
    fetched: list[FetchedEvent] = []
    opened: list[Settings] = []

    def open_store(of: Settings) -> S3Store:
        opened.append(of)
        return aws.object_store(of)

    flow = Dataflow("test")
    stream = op.redistribute("spread", op.input("in", flow, TestingSource(events, batch_size=3)))
    objects = fetch.Objects(settings, open_store=open_store)
    out = fetch.content("fetch", stream, objects=objects)
    assert opened == []
    op.output("fetched", out.fetched, TestingSink(fetched))
    cluster_main(flow, [], 0, worker_count_per_proc=2)
    assert sorted(int(found.content) for found in fetched) == list(range(20))
    assert len(opened) == 1


def test_an_empty_object_is_fetched(settings: Settings) -> None:
    obstore.put(aws.object_store(settings), "empty", b"")
    with opened(settings) as made:
        (outcome,) = made.fetch([event("empty", bucket=settings.bucket)])
    assert isinstance(outcome, FetchedEvent)
    assert outcome.content == b""


def test_no_events_are_no_outcomes(settings: Settings) -> None:
    with opened(settings) as made:
        assert made.fetch([]) == []


def test_an_object_of_another_bucket_is_not_read(settings: Settings) -> None:
    found = failure_of(settings, event("a", bucket="somebody-elses"))
    assert found.error == "ForeignBucket"
    assert "somebody-elses" in found.message
    # Nor is a deletion believed that names another bucket.
    assert failure_of(settings, event("", bucket="somebody-elses", deleted=True)).error == "ForeignBucket"


@pytest.mark.parametrize(
    "key",
    [
        "snapshots/knowledge/manifest.json",
        "warehouse/bronze.db/notes/metadata/00001.metadata.json",
        "metadata/parts.json",
        "vectors/notes.lance/_versions/1.manifest",
    ],
)
def test_the_products_own_objects_are_no_documents(settings: Settings, key: str) -> None:
    obstore.put(aws.object_store(settings), key, b"{}")
    outcomes: list[Any] = []
    flow = Dataflow("own")
    events = op.input("events", flow, TestingSource([event(key, bucket=settings.bucket)]))
    fetched = fetch.content("fetch", events, objects=fetch.Objects(settings))
    op.output("fetched", fetched.fetched, TestingSink(outcomes))
    op.output("failures", fetched.failures, TestingSink(outcomes))
    run_main(flow)

    assert [outcome.error for outcome in outcomes] == ["InternalKey"]


def test_an_object_at_the_limit_is_read_and_a_larger_one_is_not(settings: Settings) -> None:
    store = aws.object_store(settings)
    obstore.put(store, "fits", b"x" * 1000)
    obstore.put(store, "large", b"x" * 1001)
    with opened(settings, max_object_bytes=1000) as made:
        fits, large = made.fetch([event(key, bucket=settings.bucket) for key in ("fits", "large")])
    assert isinstance(fits, FetchedEvent)
    assert isinstance(large, Failure)
    assert large.error == "TooLarge"
    assert "1,001 bytes" in large.message


def test_content_that_is_not_what_the_event_names_is_a_failure(settings: Settings) -> None:
    obstore.put(aws.object_store(settings), "a", BODY)
    right = event("a", bucket=settings.bucket, content_sha256=hashlib.sha256(BODY).hexdigest())
    with opened(settings) as made:
        assert made.fetch([right]) == [FetchedEvent(right, BODY)]
    assert failure_of(settings, replace(right, content_sha256="0" * 64)).error == "ChecksumMismatch"


def test_metadata_that_is_an_object_of_its_own_is_read_with_the_content(settings: Settings) -> None:
    store = aws.object_store(settings)
    obstore.put(store, "raw/a.md", BODY)
    whole = b'{"transcript":"long","path":"a.md"}'
    digest = hashlib.sha256(whole).hexdigest()
    obstore.put(store, long_metadata_key(digest), whole)
    one = event("raw/a.md", bucket=settings.bucket, metadata={"path": "a.md"}, metadata_sha256=digest)
    with opened(settings) as made:
        (outcome,) = made.fetch([one])
    assert isinstance(outcome, FetchedEvent)
    assert outcome.event == replace(one, metadata={"path": "a.md", "transcript": "long"})


@pytest.mark.parametrize(
    ("whole", "error"),
    [
        (None, "MissingObject"),
        (b'{"a":1}', "InvalidMetadata"),
        (b"[]", "InvalidMetadata"),
        (b"\xff", "InvalidMetadata"),
        (b'{"a":"' + b"x" * 300_000 + b'"}', "InvalidMetadata"),
    ],
)
def test_metadata_that_is_not_what_the_event_names_is_a_failure(
    settings: Settings, whole: bytes | None, error: str
) -> None:
    store = aws.object_store(settings)
    obstore.put(store, "raw/a.md", BODY)
    digest = hashlib.sha256(whole or b"").hexdigest()
    if whole is not None:
        obstore.put(store, long_metadata_key(digest), whole)
    one = event("raw/a.md", bucket=settings.bucket, metadata_sha256=digest)
    assert failure_of(settings, one).error == error
    if whole is not None:
        obstore.put(store, long_metadata_key(digest), b'{"a":"forged"}')
        assert failure_of(settings, one).error == "InvalidMetadata"


@pytest.mark.parametrize("key", ["a//b", "/a", "a/", "./a", "a/../b"])
def test_a_key_that_the_client_would_read_as_another_is_a_failure(settings: Settings, key: str) -> None:
    obstore.put(aws.object_store(settings), "a", b"another object")
    assert failure_of(settings, event(key, bucket=settings.bucket)).error == "InvalidKey"


def test_a_bucket_that_does_not_exist_stops_the_flow_and_says_what_to_do(settings: Settings) -> None:
    gone = settings.model_copy(update={"bucket": "no-such-bucket"})
    with opened(gone) as made, pytest.raises(MissingError, match=r"no-such-bucket.*pkm init"):
        made.fetch([event("a", bucket="no-such-bucket")])


class _Answers:
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
def loopback_s3(answers: list[str]) -> Iterator[tuple[S3Store, _Answers]]:
    script = _Answers(answers)

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


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "BODY_BACKOFF_SECONDS", 0.005)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("answers", [["503", "503", "whole"], ["500", "whole"], ["broken", "broken", "whole"]])
def test_a_fault_that_passes_is_not_seen(settings: Settings, answers: list[str]) -> None:
    one = event("a", bucket=settings.bucket)
    with loopback_s3(answers) as (store, script), opened(settings, store) as made:
        assert made.fetch([one]) == [FetchedEvent(one, BODY)]
    assert script.requests == len(answers)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("answer", ["503", "broken", "403", "400"])
def test_a_fault_that_stays_stops_the_flow_and_names_the_object(settings: Settings, answer: str) -> None:
    one = event("raw/a.md", bucket=settings.bucket)
    with (
        loopback_s3([answer]) as (store, _),
        opened(settings, store) as made,
        pytest.raises(UnreachableError, match=rf"s3://{settings.bucket}/raw/a\.md"),
    ):
        made.fetch([one] * 20)


def test_a_server_that_is_gone_stops_the_flow(settings: Settings) -> None:
    with loopback_s3(["whole"]) as (store, _):
        pass
    with opened(settings, store) as made, pytest.raises(UnreachableError, match="after all retries"):
        made.fetch([event("a", bucket=settings.bucket)])


def test_the_size_is_judged_before_the_body_is_read(settings: Settings) -> None:
    # The server promises a gigabyte and sends a kilobyte: reading the body would fail.
    with loopback_s3(["huge"]) as (store, script):
        found = failure_of(settings, event("a", bucket=settings.bucket), store=store)
    assert found.error == "TooLarge"
    assert script.requests == 1


def test_many_requests_are_in_flight_but_no_more_than_allowed(settings: Settings) -> None:
    with loopback_s3(["whole"]) as (store, script), opened(settings, store, concurrency=4) as made:
        # Nobody is answered until four are there; a fifth may not come before.
        script.gate = threading.Barrier(4, timeout=20).wait
        outcomes = made.fetch([event(str(number), bucket=settings.bucket) for number in range(12)])
    assert all(isinstance(outcome, FetchedEvent) for outcome in outcomes)
    assert script.most_in_flight == 4


@contextmanager
def counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Let clients that are made from here on go through a proxy; gives how many objects were read."""
    with fault_proxy(aws.endpoint("s3") or "") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield lambda: proxy.passed["s3 GET"]


def wait_for(count: Callable[[], int], expected: int) -> None:
    deadline = time.monotonic() + 10
    while count() < expected:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_read_ahead_is_not_read_again_and_belongs_to_the_event_that_is_due(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore.put(aws.object_store(settings), "a", BODY)
    early = event("a", bucket=settings.bucket)
    due = replace(early, revived=True)
    with counted(settings, monkeypatch) as reads, opened(settings) as made:
        made.ahead([early])
        wait_for(reads, 1)
        assert made.fetch([due]) == [FetchedEvent(due, BODY)]
        assert reads() == 1
        made.fetch([due])
        assert reads() == 2, "it is given once"


def test_what_was_not_there_or_too_large_or_another_ahead_is_read_when_it_is_due(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = aws.object_store(settings)
    large = b"x" * (fetcher.MOST_AHEAD_BYTES + 1)
    obstore.put(store, "large", large)
    obstore.put(store, "changed", b"old")
    sha256 = hashlib.sha256(b"new").hexdigest()
    events = [event(key, bucket=settings.bucket) for key in ("late", "large")]
    events.append(event("changed", bucket=settings.bucket, content_sha256=sha256))
    with counted(settings, monkeypatch) as reads, opened(settings, max_object_bytes=len(large)) as made:
        made.ahead(events)
        wait_for(reads, 3)
        obstore.put(store, "late", b"came")
        obstore.put(store, "changed", b"new")
        assert [outcome.content for outcome in made.fetch(events)] == [b"came", large, b"new"]


def test_reading_ahead_lets_nothing_through_that_is_too_large(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore.put(aws.object_store(settings), "a", b"x" * 2000)
    one = event("a", bucket=settings.bucket)
    with counted(settings, monkeypatch) as reads, opened(settings, max_object_bytes=1000) as made:
        made.ahead([one])
        wait_for(reads, 1)
        (outcome,) = made.fetch([one])
    assert isinstance(outcome, Failure)
    assert outcome.error == "TooLarge"


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("answer", ["403", "400"])
def test_a_fault_that_has_passed_when_the_event_is_due_is_not_told(settings: Settings, answer: str) -> None:
    one = event("raw/a.md", bucket=settings.bucket)
    with loopback_s3([answer, "whole"]) as (store, script), opened(settings, store) as made:
        made.ahead([one])
        wait_for(lambda: script.requests, 1)
        time.sleep(0.2)
        (outcome,) = made.fetch([one])
        assert isinstance(outcome, FetchedEvent)


def test_nothing_is_read_ahead_that_must_not_be_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = [
        event("a", bucket="another"),
        event("snapshots/knowledge/manifest.json", bucket=settings.bucket),
        event("gone", bucket=settings.bucket, deleted=True),
    ]
    with counted(settings, monkeypatch) as reads, opened(settings, own_prefixes=("snapshots/",)) as made:
        made.ahead(forbidden)
        made.fetch(forbidden)
        assert reads() == 0


def test_what_is_never_due_makes_room_for_what_comes_later_and_what_is_due_first_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "MOST_AHEAD", 3)
    store = aws.object_store(settings)
    events = [event(f"{at}", bucket=settings.bucket) for at in range(8)]
    for one in events:
        obstore.put(store, one.s3_key, one.s3_key.encode())
    with counted(settings, monkeypatch) as reads, opened(settings) as made:
        made.ahead(events[:1])
        wait_for(reads, 1)
        made.ahead(events[1:])
        wait_for(reads, 4)
        assert [outcome.content for outcome in made.fetch(events[1:4])] == [b"1", b"2", b"3"]
        assert reads() == 4
        assert [outcome.content for outcome in made.fetch(events)] == [b"%d" % at for at in range(8)]
        assert reads() == 12


def test_a_missing_bucket_is_told_also_when_it_was_missing_ahead(settings: Settings) -> None:
    gone = settings.model_copy(update={"bucket": "no-such-bucket-2"})
    with opened(gone) as made:
        made.ahead([event("a", bucket=gone.bucket)])
        with pytest.raises(MissingError, match=r"no-such-bucket-2.*pkm init"):
            made.fetch([event("a", bucket=gone.bucket)])


def test_an_interrupt_ends_the_requests_under_way(settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    with fault_proxy(aws.endpoint("s3") or "") as proxy:
        proxy.rules.append(Fault("hang"))
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
            store = aws.object_store(settings)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with opened(settings, store) as made:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                began = time.monotonic()
                with pytest.raises(KeyboardInterrupt):
                    made.fetch([event(f"{at}", bucket=settings.bucket) for at in range(3)])
                assert time.monotonic() - began < 5
        finally:
            signal.signal(signal.SIGALRM, before)
    gc.collect()
    assert "never retrieved" not in capfd.readouterr().err


def test_records_are_read_ahead_as_events_and_those_that_are_none_are_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore.put(aws.object_store(settings), "a", BODY)
    data = orjson.dumps({"event_id": "1", "source_type": "file", "timestamp": "2026-11-23T08:00:00Z", "s3_key": "a"})
    records = [
        RawRecord(content, "key", NOON, Position("shard-0", at, 0)) for at, content in enumerate((b"no JSON", data))
    ]
    with counted(settings, monkeypatch) as reads:
        objects = fetch.Objects(settings)
        objects.ahead(records)
        wait_for(reads, 1)
        (outcome,) = objects.fetch([parse_record(records[1], bucket=settings.bucket, now=NOON)])
        assert (outcome.content, reads()) == (BODY, 1)
