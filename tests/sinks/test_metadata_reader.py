"""A reader that stays open: it follows what is committed, and comes back from faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from builders import NOW, event_of, note_of, record_of
from core.errors import MissingError, UnreachableError
from core.records import Note
from core.settings import Settings
from sinks import metadata_reader, slatedb
from sinks.metadata_reader import NoteReader


def note(note_id: str, number: int, *, deleted: bool = False) -> Note:
    event = event_of(note_id=note_id, event_id=f"{note_id}-{number}", deleted=deleted, record=record_of(number))
    return replace(note_of("" if deleted else "text", event=event), processed_at=NOW)


@pytest.fixture
def reader(settings: Settings) -> Iterator[NoteReader]:
    settings = settings.model_copy(update={"metadata_parts": 1, "retry_seconds": 5.0})
    slatedb.create_store(settings)
    opened = NoteReader(settings)
    yield opened
    opened.close()


def write(settings: Settings, *notes: Note) -> None:
    part = slatedb.MetadataPart(settings, "part-00")
    part.write_batch(list(notes))
    part.snapshot()
    part.close()


def event_id_when_it_is(reader: NoteReader, note_id: str, expected: str | None) -> str | None:
    deadline = time.monotonic() + 5 * metadata_reader.FOLLOW_SECONDS
    while True:
        record = reader.get(note_id)
        event_id = record["event_id"] if record else None
        if event_id == expected or time.monotonic() > deadline:
            return event_id
        time.sleep(0.05)


def test_it_follows_what_executions_commit_one_after_the_other(settings: Settings, reader: NoteReader) -> None:
    assert reader.get("a") is None
    write(settings, note("a", 1))
    assert event_id_when_it_is(reader, "a", "a-1") == "a-1"
    write(settings, note("a", 2), note("b", 3))
    assert event_id_when_it_is(reader, "a", "a-2") == "a-2"
    assert reader.get("c") is None
    write(settings, note("a", 4, deleted=True))
    assert event_id_when_it_is(reader, "a", None) is None
    assert event_id_when_it_is(reader, "b", "b-3") == "b-3"


def test_a_store_that_was_not_created_or_does_not_answer_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = NoteReader(settings.model_copy(update={"retry_seconds": 0.5}))
    with pytest.raises(MissingError, match="run `pkm init`"):
        reader.get("a")
    slatedb.create_store(settings)
    assert reader.get("a") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    time.sleep(metadata_reader.FOLLOW_SECONDS)
    with pytest.raises(UnreachableError):
        reader.get("a")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert reader.get("a") is None
    reader.close()
