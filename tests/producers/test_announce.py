"""Producers' core: objects before events, nothing twice, order kept, refusals sent again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import obstore
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from announced import Refusing, records
from core import aws
from core.errors import MissingError, UnreachableError
from core.layout import long_metadata_key
from core.records import event_identity, note_identity
from core.settings import Settings
from producers import announce as module
from producers import stream, uploads
from producers.announce import (
    SourceItem,
    StoredObject,
    Summary,
    announce,
    announce_deletions,
    announce_stored,
    raw_key,
)

AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def items(count: int) -> list[SourceItem]:
    return [
        SourceItem(
            "files", f"notes/{number}.md", f"# Note {number}\n".encode(), "text/markdown", {"path": str(number)}
        )
        for number in range(count)
    ]


def test_a_record_names_an_object_that_holds_the_bytes(settings: Settings, kinesis: Any) -> None:
    item = SourceItem("files", "notes/a.md", b"# A\n", "text/markdown", {"path": "notes/a.md"})
    announce([item], settings=settings)
    (record,) = records(kinesis, settings)
    found = obstore.get(aws.object_store(settings), record["s3_key"])
    assert bytes(found.bytes()) == b"# A\n"
    assert found.attributes["Content-Type"] == "text/markdown"
    assert record["s3_key"] == raw_key("files", record["event_id"]) == f"bronze/raw/files/{record['event_id']}"
    assert record["note_id"] == record["partition_key"] == note_identity("files", "notes/a.md")
    assert record["bucket"] == settings.bucket
    assert record["content_size"] == 4
    assert record["content_type"] == "text/markdown"
    assert record["metadata"] == {"path": "notes/a.md"}
    assert datetime.fromisoformat(record["timestamp"]).tzinfo is not None


def test_a_second_run_uploads_nothing_and_announces_the_same_event_ids(settings: Settings, kinesis: Any) -> None:
    first = announce(items(20), settings=settings)
    second = announce(items(20), settings=settings)
    assert first == Summary(20, 20, 0, sum(len(item.content) for item in items(20)), {"text/markdown": 20})
    assert (second.announced, second.uploaded, second.already_there) == (20, 0, 20)
    event_ids = [record["event_id"] for record in records(kinesis, settings)]
    assert sorted(event_ids[:20]) == sorted(event_ids[20:])
    assert len(set(event_ids)) == 20


def test_a_new_version_is_another_event_of_the_same_note(settings: Settings, kinesis: Any) -> None:
    (item,) = items(1)
    announce([item, replace(item, content=b"changed")], settings=settings)
    old, new = records(kinesis, settings)
    assert old["note_id"] == new["note_id"]
    assert old["event_id"] != new["event_id"]


def test_only_refused_records_are_sent_again(settings: Settings, kinesis: Any) -> None:
    pauses: list[float] = []
    client = Refusing(kinesis, iter([{1, 3}, {0}]))
    announce(items(5), settings=settings, client=client, pause=pauses.append)
    assert [len(call) for call in client.calls] == [5, 2, 1]
    assert client.calls[1] == [client.calls[0][1], client.calls[0][3]]
    assert client.calls[2] == [client.calls[0][1]]
    assert len(records(kinesis, settings)) == 5
    assert len(pauses) == 2
    assert all(0 <= pause <= stream.LONGEST_PAUSE_SECONDS for pause in pauses)


def test_versions_of_a_note_keep_their_order_though_the_first_is_refused(settings: Settings, kinesis: Any) -> None:
    versions = [replace(items(1)[0], content=str(number).encode()) for number in range(4)]
    client = Refusing(kinesis, iter([{0}, {0}]))
    announce([*versions[:2], *items(5)[1:], *versions[2:]], settings=settings, client=client, pause=lambda _: None)
    note = note_identity("files", "notes/0.md")
    keys = [record["s3_key"] for record in records(kinesis, settings) if record["note_id"] == note]
    store = aws.object_store(settings)
    assert [bytes(obstore.get(store, key).bytes()) for key in keys] == [b"0", b"1", b"2", b"3"]


def test_a_stream_that_refuses_for_ever_is_named(settings: Settings, kinesis: Any) -> None:
    client = Refusing(kinesis, iter([{0}] * 100))
    with pytest.raises(UnreachableError, match=f'stream "{settings.stream}" refused 1 records .*slow down'):
        announce(items(1), settings=settings, client=client, pause=lambda _: None)
    assert len(client.calls) == stream.ATTEMPTS


def test_a_missing_stream_is_named_with_what_to_do(settings: Settings) -> None:
    with pytest.raises(MissingError, match=f'stream "{settings.stream}" does not exist: run `pkm init`'):
        announce(items(1), settings=settings)


def test_a_missing_bucket_is_named_before_anything_is_announced(settings: Settings, kinesis: Any) -> None:
    with pytest.raises(MissingError, match='bucket "no-such-bucket" does not exist: run `pkm init`'):
        announce(items(3), settings=settings.model_copy(update={"bucket": "no-such-bucket"}))
    assert records(kinesis, settings) == []


def test_an_endpoint_that_does_not_answer_is_named(
    settings: Settings, kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "ATTEMPTS", 1)
    settings = settings.model_copy(update={"retry_seconds": 1.0})
    monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=rf'stream "{settings.stream}" at http://127.0.0.1:9 '):
        announce(items(1), settings=settings)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=rf'bucket "{settings.bucket}" at http://127.0.0.1:9 .*notes/0.md'):
        announce(items(1), settings=settings)


def test_more_items_than_one_call_takes_all_arrive_and_progress_counts_them(settings: Settings, kinesis: Any) -> None:
    heard: list[int] = []
    many = [SourceItem("files", str(number), b"same") for number in range(stream.CALL_RECORDS + 1)]
    client = Refusing(kinesis, iter([]))
    summary = announce(iter(many), settings=settings, client=client, on_progress=heard.append)
    assert summary.announced == sum(heard) == len(many)
    assert [len(call) for call in client.calls] == [stream.CALL_RECORDS, 1]
    assert summary.by_content_type == {"text/plain": len(many)}


def test_a_deletion_names_the_note_and_has_no_object(settings: Settings, kinesis: Any) -> None:
    summary = announce_deletions(["notes/a.md"], source_type="files", settings=settings, at=AT)
    (record,) = records(kinesis, settings)
    assert summary.announced == 1
    assert record["deleted"] is True
    assert record["note_id"] == note_identity("files", "notes/a.md")
    assert record["content_size"] == 0


def test_a_deletion_has_the_same_id_at_the_same_time_and_another_later(settings: Settings, kinesis: Any) -> None:
    for at in (AT, AT, AT.replace(hour=9)):
        announce_deletions(["notes/a.md"], source_type="files", settings=settings, at=at)
    first, again, later = [record["event_id"] for record in records(kinesis, settings)]
    assert first == again != later


@pytest.mark.parametrize("source_type", ["", "Files", "a/b", "../up", "a" * 65])
def test_a_source_type_that_can_not_be_part_of_a_key_is_refused(source_type: str) -> None:
    with pytest.raises(ValueError, match="source type"):
        SourceItem(source_type, "a", b"")


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 900_000)), max_size=60))
def test_calls_keep_the_limits_and_the_order_of_each_note(notes: list[tuple[int, int]]) -> None:
    data = os.urandom(8)
    sent = [stream.Announcement(f"note{note}", (data * (size // 8 + 1))[:size]) for note, size in notes]
    groups = list(stream.calls(sent))
    assert [announcement for group in groups for announcement in group] == sent
    for group in groups:
        assert 0 < len(group) <= stream.CALL_RECORDS
        assert sum(announcement.size_bytes for announcement in group) <= stream.CALL_BYTES
        assert len({announcement.note_id for announcement in group}) == len(group)


def test_a_slice_holds_a_bounded_number_of_bytes() -> None:
    content = bytes(module.SLICE_BYTES // 4)
    sizes = [len(group) for group in module.slices(SourceItem("files", str(n), content) for n in range(10))]
    assert sizes == [4, 4, 2]


def test_what_a_slow_source_gave_does_not_wait_for_a_full_slice() -> None:
    times = iter([0.0, 0.2, 0.9, 1.1, 5.0, 5.0])
    groups = module.slices(items(4), clock=lambda: next(times))
    assert [len(group) for group in groups] == [3, 1]


def test_an_object_that_lies_there_already_is_announced_as_it_is(settings: Settings, kinesis: Any) -> None:
    content = b"# Uploaded in parts\n"
    stored = StoredObject(
        source_type="uploads",
        identity="report.md",
        event_id=event_identity("uploads", "report.md", content),
        s3_key="bronze/raw/uploads/0123",
        content_size=len(content),
    )
    summary = announce_stored([stored], settings=settings)
    assert summary == Summary(1, 0, 1, len(content), {"unknown": 1})
    (record,) = records(kinesis, settings)
    assert record["s3_key"] == "bronze/raw/uploads/0123"
    assert record["event_id"] == stored.event_id
    assert record["note_id"] == record["partition_key"] == note_identity("uploads", "report.md")
    assert not {"content_type", "content_sha256", "metadata_sha256"} & set(record)


def test_a_large_object_that_is_there_does_not_travel_again(
    settings: Settings, kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = SourceItem("files", "large.txt", b"x" * (uploads.ASK_FIRST_BYTES + 1))
    assert announce([large], settings=settings).uploaded == 1

    async def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("its bytes travelled")

    monkeypatch.setattr(obstore, "put_async", never)
    assert announce([large], settings=settings) == Summary(1, 0, 1, len(large.content), {"text/plain": 1})


def test_the_same_version_twice_is_one_object(settings: Settings, kinesis: Any) -> None:
    assert announce(items(1) * 3, settings=settings) == Summary(3, 1, 2, 27, {"text/markdown": 3})


def test_what_the_source_gave_before_it_failed_is_announced(
    settings: Settings, kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_ITEMS", 2)

    def failing() -> Iterator[SourceItem]:
        yield from items(5)
        raise UnreachableError("the source is gone")

    with pytest.raises(UnreachableError, match="the source is gone"):
        announce(failing(), settings=settings)
    assert len(records(kinesis, settings)) == 4


def test_after_a_slice_that_failed_none_is_announced_and_a_rerun_completes(
    settings: Settings, kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_ITEMS", 2)
    # The second slice's call is refused until it is given up.
    client = Refusing(kinesis, iter([set(), *[{0, 1}] * stream.ATTEMPTS]))
    with pytest.raises(UnreachableError, match="the same command completes what is missing"):
        announce(items(8), settings=settings, client=client, pause=lambda _: None)
    announced = [record["metadata"]["path"] for record in records(kinesis, settings)]
    assert announced == ["0", "1"]
    rerun = announce(items(8), settings=settings)
    assert rerun.already_there >= 4
    assert {record["metadata"]["path"] for record in records(kinesis, settings)} == {str(n) for n in range(8)}


def test_the_next_slice_is_uploaded_while_the_last_one_waits_for_the_stream(
    settings: Settings, kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE_ITEMS", 2)
    third_uploaded = raw_key("files", event_identity("files", "notes/3.md", items(4)[3].content))
    waited: list[bool] = []

    def pause(_: float) -> None:
        # The stream refused the first slice; the second's objects appear all the same.
        for _attempt in range(200):
            try:
                obstore.head(aws.object_store(settings), third_uploaded)
            except FileNotFoundError:
                time.sleep(0.05)
            else:
                waited.append(True)
                return

    announce(items(4), settings=settings, client=Refusing(kinesis, iter([{0}])), pause=pause)
    assert waited == [True]


def test_metadata_that_is_too_long_for_the_record_is_an_object_of_its_own(settings: Settings, kinesis: Any) -> None:
    metadata = {"path": "notes/a.md", "transcript": "long " * 10_000, "title": "Caf\u00e9"}
    item = SourceItem("agents", "a", b"# A\n", "text/markdown", metadata)
    assert announce([item], settings=settings).uploaded == 1
    (record,) = records(kinesis, settings)
    assert record["metadata"] == {"path": "notes/a.md", "title": "Caf\u00e9"}
    store = aws.object_store(settings)
    whole = bytes(obstore.get(store, long_metadata_key(record["metadata_sha256"])).bytes())
    assert orjson.loads(whole) == metadata
    attributes = obstore.get(store, record["s3_key"]).attributes
    assert attributes["title"] == "Caf%C3%A9"
    assert attributes["note-id"] == record["note_id"]
    assert announce([item], settings=settings).already_there == 1
