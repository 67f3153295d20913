"""Proves that objects arrive whole and in order, and that bad ones become failures."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import bytewax.operators as op
import obstore
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from obstore.store import S3Store

from core import aws
from core.errors import MissingError
from core.layout import long_metadata_key
from core.records import Failure, FetchedEvent
from core.settings import Settings
from fetching import BODY, event, failure_of, opened
from operators import fetch


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
