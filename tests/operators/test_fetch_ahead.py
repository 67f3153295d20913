"""Proves that reading ahead saves requests, and changes nothing else."""

from __future__ import annotations

import gc
import hashlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import obstore
import orjson
import pytest

from core import aws
from core.errors import MissingError
from core.records import Failure, FetchedEvent, Position, RawRecord
from core.settings import Settings
from faults.proxy import Fault, fault_proxy
from fetching import BODY, event, loopback_s3, opened
from operators import fetch, fetcher
from operators.parse import parse_record

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


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
