"""Proves that every record becomes a checked event or a failure that says why."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main
from hypothesis import given
from hypothesis import strategies as st

from core.records import Event, Failure, Position, RawRecord, Redrive, note_identity
from core.telemetry import FAILURES
from operators import parse

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
SEED = {
    "event_id": "0123456789abcdef",
    "source_type": "git",
    "content_size": 12,
    "metadata": {"path": "docs/a.md", "sha": "ab12", "size": 12, "repo": "owner/name"},
    "timestamp": "2026-11-23T07:59:58.123456",
    "s3_key": "bronze/raw/git/0123456789abcdef",
}


def raw(data: bytes) -> RawRecord:
    return RawRecord(data, "key", NOW, Position("shardId-000000000000", 7, 2))


def parsed(**changes: Any) -> Event | Failure:
    fields = {name: value for name, value in {**SEED, **changes}.items() if value is not ...}
    return parse.parse_record(raw(orjson.dumps(fields)), bucket="lake", now=NOW)


def event(**changes: Any) -> Event:
    outcome = parsed(**changes)
    assert isinstance(outcome, Event), outcome
    return outcome


def failure(**changes: Any) -> Failure:
    outcome = parsed(**changes)
    assert isinstance(outcome, Failure), outcome
    return outcome


def test_a_record_with_only_the_seeds_fields_is_an_event() -> None:
    found = event()
    assert found == Event(
        event_id="0123456789abcdef",
        note_id=note_identity("git", "owner/name/docs/a.md"),
        source_type="git",
        bucket="lake",
        s3_key="bronze/raw/git/0123456789abcdef",
        content_type=None,
        content_size=12,
        content_sha256=None,
        metadata={"path": "docs/a.md", "sha": "ab12", "size": "12", "repo": "owner/name"},
        timestamp=datetime(2026, 11, 23, 7, 59, 58, 123456, tzinfo=UTC),
        deleted=False,
        record=found.record,
    )
    assert found.position == Position("shardId-000000000000", 7, 2)


@pytest.mark.parametrize(
    ("metadata", "identity"),
    [
        ({"path": "a.md"}, "a.md"),
        ({"url": "https://example.com/a"}, "https://example.com/a"),
        ({"path": "a.md", "url": "https://example.com/a"}, "a.md"),
        ({"path": "a.md", "repo": "o/n"}, "o/n/a.md"),
    ],
)
def test_the_note_is_named_after_its_path_or_address(metadata: dict[str, str], identity: str) -> None:
    assert event(metadata=metadata).note_id == note_identity("git", identity)


def test_without_path_and_address_the_note_is_the_event_itself() -> None:
    assert event(metadata={"sha": "ab"}).note_id == SEED["event_id"]


def test_the_records_own_note_id_wins() -> None:
    assert event(note_id="note-1").note_id == "note-1"


def test_a_deletion_needs_no_object() -> None:
    found = event(deleted=True, s3_key=..., content_size=..., metadata=...)
    assert (found.deleted, found.s3_key, found.content_size, found.metadata) == (True, "", 0, {})


def test_null_counts_as_missing() -> None:
    found = event(deleted=True, s3_key=None, content_type=None, note_id=None, metadata={"path": None})
    assert (found.s3_key, found.content_type, found.metadata) == ("", None, {})


def test_metadata_that_is_not_text_is_kept_as_json() -> None:
    found = event(metadata={"n": 1, "f": 1.5, "b": True, "l": ["a", {"x": 1}]})
    assert found.metadata == {"n": "1", "f": "1.5", "b": "true", "l": '["a",{"x":1}]'}


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-23T08:00:00", NOW),
        ("2026-11-23T08:00:00Z", NOW),
        ("2026-11-23T10:00:00+02:00", NOW),
        ("2026-11-23T08:00:00.5", NOW + timedelta(milliseconds=500)),
    ],
)
def test_times_are_aware_and_in_utc(text: str, time: datetime) -> None:
    found = event(timestamp=text).timestamp
    assert found == time
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"event_id": ...}, "event_id"),
        ({"source_type": ...}, "source_type"),
        ({"timestamp": ...}, "timestamp"),
        ({"s3_key": ...}, "s3_key"),
        ({"event_id": 7}, "event_id"),
        ({"event_id": "a b"}, "event_id"),
        ({"event_id": "a" * 129}, "event_id"),
        ({"event_id": "ab\n"}, "event_id"),
        ({"note_id": ""}, "note_id"),
        ({"source_type": "g" * 65}, "source_type"),
        ({"source_type": "a/b"}, "source_type"),
        ({"content_size": -1}, "content_size"),
        ({"content_size": "12"}, "content_size"),
        ({"content_size": 2**63}, "content_size"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": 1700000000}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp"),
        ({"s3_key": "k" * 1025}, "s3_key"),
        ({"s3_key": "ü" * 513}, "s3_key"),
        ({"s3_key": "a\x00b"}, "s3_key"),
        ({"s3_key": "/../etc/passwd"}, "s3_key"),
        ({"s3_key": "a/../../b"}, "s3_key"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {str(number): "" for number in range(65)}}, "metadata"),
        ({"metadata": {"path": "x" * 16_385}}, "metadata"),
        ({"metadata": {"path": "x\x00"}}, "metadata"),
        ({"content_sha256": "ab"}, "content_sha256"),
        ({"content_type": "text/\nhtml"}, "content_type"),
        ({"bucket": ""}, "bucket"),
        ({"deleted": "yes"}, "deleted"),
    ],
)
def test_a_field_out_of_bounds_is_a_failure_that_names_it(changes: dict[str, Any], named: str) -> None:
    found = failure(**changes)
    assert (found.step, found.error) == ("parse", "InvalidRecord")
    assert named in found.message
    assert len(found.message) <= 500


def test_a_failure_never_repeats_content_but_names_the_record() -> None:
    found = failure(timestamp="SECRET", metadata={"path": "SECRET" * 10_000})
    assert "SECRET" not in found.message
    assert (found.event_id, found.s3_key) == (SEED["event_id"], SEED["s3_key"])
    assert found.failed_at == NOW


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "NotJson"),
        (b"not json", "NotJson"),
        (b"\xff\xfe", "NotJson"),
        (b"[" * 100_000, "NotJson"),
        (b"[]", "NotAnObject"),
        (b'"text"', "NotAnObject"),
        (b"{}", "InvalidRecord"),
        (b" " * (parse.MAX_RECORD_BYTES + 1), "TooLarge"),
    ],
)
def test_data_that_is_no_record_is_a_failure(data: bytes, error: str) -> None:
    outcome = parse.parse_record(raw(data), bucket="lake", now=NOW)
    assert isinstance(outcome, Failure)
    assert (outcome.error, outcome.event_id, outcome.s3_key) == (error, None, None)


def test_metadata_nested_too_deep_is_a_failure() -> None:
    nested = b"[" * 1000 + b"]" * 1000
    data = orjson.dumps(SEED).replace(b'"ab12"', nested)
    outcome = parse.parse_record(raw(data), bucket="lake", now=NOW)
    assert isinstance(outcome, Failure)
    assert outcome.message == "metadata: is nested too deep"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert isinstance(parse.parse_record(raw(data), bucket="lake", now=NOW), Event | Failure)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*SEED, "bucket", "note_id", "deleted"), _JSON)))
def test_no_object_makes_it_raise_and_every_event_is_within_bounds(changes: dict[str, Any]) -> None:
    # The standard library writes what orjson refuses to: big integers, NaN, lone surrogates.
    data = json.dumps({**SEED, **changes}).encode()
    outcome = parse.parse_record(raw(data), bucket="lake", now=NOW)
    if isinstance(outcome, Event):
        assert 1 <= len(outcome.event_id) <= 128
        assert 1 <= len(outcome.note_id) <= 128
        assert outcome.timestamp.tzinfo is UTC
        assert outcome.s3_key or outcome.deleted
        assert all(isinstance(value, str) for value in outcome.metadata.values())


def test_the_operator_splits_events_and_failures_in_order_and_counts_failures() -> None:
    records = [
        raw(orjson.dumps({**SEED, "event_id": str(number)}) if number % 3 else b"bad %d" % number)
        for number in range(30)
    ]
    events: list[Event] = []
    failures: list[Failure] = []
    before = FAILURES.labels(step="parse")._value.get()
    flow = Dataflow("test")
    out = parse.events("parse", op.input("in", flow, TestingSource(records, batch_size=7)), bucket="lake")
    op.output("events", out.events, TestingSink(events))
    op.output("failures", out.failures, TestingSink(failures))
    run_main(flow)
    assert [found.event_id for found in events] == [str(number) for number in range(30) if number % 3]
    assert [found.record.data for found in failures] == [b"bad %d" % number for number in range(0, 30, 3)]
    assert FAILURES.labels(step="parse")._value.get() - before == 10


def test_the_mark_of_a_redriven_record_is_read() -> None:
    marked = event(redriven={"attempt": 2, "arrival_time": "2026-11-23T08:00:00+02:00", "outdated": True})
    assert marked.redrive == Redrive(2, datetime(2026, 11, 23, 6, tzinfo=UTC))
    assert marked.outdated
    plain = event()
    assert plain.redrive is None
    assert not plain.outdated


@pytest.mark.parametrize("mark", [1, {}, {"attempt": 0, "arrival_time": "2026-11-23"}, {"attempt": 1}])
def test_a_mark_that_nobody_wrote_is_refused(mark: Any) -> None:
    assert "redriven" in failure(redriven=mark).message
