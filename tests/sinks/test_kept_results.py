"""Results live beside their note in the metadata store: found again, replaced with it, gone with it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import bytewax.operators as op
import numpy as np
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main
from slatedb import uniffi  # type: ignore[import-untyped]

from builders import event_of, note_of, record_of
from core.async_thread import AsyncThread
from core.records import Chunk, Note
from core.results import decode, encode
from core.settings import Settings
from sinks import kept_results, metadata_keys, metadata_store, slatedb
from sinks.kept_results import StoredResults
from sinks.metadata_records import changes, results_entry


def note(number: int, *, note_id: str = "one", text: str = "Ada", key: str = "k1", **changes: object) -> Note:
    event = event_of(note_id=note_id, event_id=f"event {number}", record=record_of(number), deleted=not text)
    fields: dict[str, object] = {
        "chunks": (Chunk(0, text, 0, len(text)),) if text else (),
        "embeddings": np.array([[1.0, 0.0]], dtype=np.float32),
        "result_key": key,
    }
    return note_of(text, event=event, **{**fields, **changes})


@pytest.fixture
def store(settings: Settings) -> Settings:
    slatedb.create_store(settings)
    return settings


@pytest.fixture
def stored(store: Settings) -> Iterator[StoredResults]:
    opened = StoredResults(store)
    yield opened
    opened.close()


def write(store: Settings, *notes: Note) -> None:
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(list(notes), batch_size=10))
    slatedb.output("metadata", stream, settings=store)
    op.output("out", stream, TestingSink([]))
    run_main(flow)


def test_results_are_found_under_the_notes_id_and_under_any_other(store: Settings, stored: StoredResults) -> None:
    notes = [note(number, note_id=f"note {number}", key=f"k{number}") for number in range(8)]
    write(store, *notes)
    assert stored.find({f"k{number}": f"note {number}" for number in range(9)}) == {
        one.result_key: encode(one) for one in notes
    }
    assert stored.find({"k3": "another"}) == {"k3": encode(notes[3])}
    assert stored.find({}) == {}


def test_a_new_version_takes_the_results_of_the_old_one_along(store: Settings) -> None:
    write(store, note(1, key="k1"))
    write(store, note(2, text="Ada and Tom", key="k2"))
    opened = StoredResults(store)
    assert list(opened.find({"k1": "one", "k2": "one"})) == ["k2"]
    opened.close()
    write(store, note(3, text=""))
    assert not [key for key, _ in slatedb.scan(store, "result/")]


def test_what_was_reused_is_not_written_again_and_stays() -> None:
    before = note(1)
    entry = results_entry(before)
    assert entry is not None
    puts, _ = changes([before], {})
    assert puts[entry[0]] == entry[1]
    record = puts[metadata_keys.note_key("one")]
    puts, stale = changes([replace(before, reused=True, processing_version="2")], {"one": record})
    assert entry[0] not in puts
    assert entry[0] not in stale
    # Found under another note's name, it is this note's from now on.
    puts, _ = changes([replace(note(2, note_id="two"), reused=True)], {})
    assert puts[entry[0]]


def test_before_anything_is_written_nothing_is_found_and_it_is_looked_for_again(
    store: Settings, stored: StoredResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.find({"k1": "one"}) == {}
    write(store, note(1))
    assert stored.find({"k1": "one"}) == {}
    stored._again_at = 0.0  # a minute later
    monkeypatch.setattr(kept_results, "AGAIN_SECONDS", 0.0)
    opening = threading.Event()
    openings = []
    open_reader = metadata_store.open_reader

    async def open_slowly(*arguments: Any, **options: Any) -> Any:
        openings.append(arguments)
        await asyncio.to_thread(opening.wait, 20)
        return await open_reader(*arguments, **options)

    monkeypatch.setattr(metadata_store, "open_reader", open_slowly)
    # The stream does not wait until it is open, and nobody else opens it.
    started = time.monotonic()
    while not openings and time.monotonic() < started + 10:
        assert stored.find({"k1": "one"}) == {}
    assert [stored.find({"k1": "one"}) for _ in range(3)] == [{}, {}, {}]
    assert time.monotonic() - started < 10
    assert len(openings) == 1
    opening.set()
    found: dict[str, bytes] = {}
    while not found and time.monotonic() < started + 20:
        found = stored.find({"k1": "one"})
    assert decode(found["k1"], key="k1", text="Ada") is not None


def test_a_store_that_does_not_answer_is_an_empty_one(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    hurried = store.model_copy(update={"request_seconds": 1.0, "retry_seconds": 1.0})
    opened = StoredResults(hurried)
    started = time.monotonic()
    assert opened.find({"k1": "one"}) == {}
    assert time.monotonic() - started < 20
    # For a minute nobody waits for it again.
    assert opened.find({"k1": "one"}) == {}
    assert time.monotonic() - started < 21
    opened.close()


def test_all_who_ask_wait_until_it_was_opened_for_the_first_time(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, note(1))
    open_reader = metadata_store.open_reader

    async def open_slowly(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0.5)
        return await open_reader(*arguments, **options)

    monkeypatch.setattr(metadata_store, "open_reader", open_slowly)
    opened = StoredResults(store)
    with ThreadPoolExecutor(3) as workers:
        found = list(workers.map(opened.find, [{"k1": "one"}] * 3))
    opened.close()
    assert [list(one) for one in found] == [["k1"]] * 3


def test_readers_that_did_not_answer_in_time_are_closed_and_opened_again(
    store: Settings, stored: StoredResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, note(1))
    assert list(stored.find({"k1": "one"})) == ["k1"]
    (reader,) = stored._readers.values()
    with monkeypatch.context() as patch:
        patch.setattr(kept_results, "FIND_SECONDS", 0.0)
        assert stored.find({"k1": "one"}) == {}
    # Dropped only, they would go on to ask the store for what is new.
    deadline = time.monotonic() + 20

    async def read_until_closed() -> None:
        while time.monotonic() < deadline:
            await reader.get(b"key")

    with AsyncThread("look") as thread, pytest.raises(uniffi.Error):
        thread.run(read_until_closed(), seconds=20)
    stored._again_at = 0.0  # a minute later
    found: dict[str, bytes] = {}
    while not found and time.monotonic() < deadline:
        found = stored.find({"k1": "one"})
    assert list(found) == ["k1"]


def test_a_store_that_was_never_created_is_an_empty_one(settings: Settings) -> None:
    opened = StoredResults(settings)
    assert opened.find({"k1": "one"}) == {}
    opened.close()
