"""The metadata store: versions, deletion, exactly once, fencing and readers, on real SlateDB."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import bytewax.operators as op
import obstore
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, cluster_main, run_main

from core import aws
from core.deferred import settled
from core.errors import FencedError, MissingError, UnreachableError
from core.first_error import begin, first_error
from core.markers import Marker
from core.records import Note, Position
from core.settings import Settings
from core.telemetry import COMMITS
from metadata_notes import note
from sinks import metadata_store, slatedb
from sinks.closing import CarefulPartition
from sinks.lance import NoVectors

START = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def store(settings: Settings) -> Settings:
    """Settings of a store with one part, so that a test knows where its notes go."""
    settings = settings.model_copy(update={"metadata_parts": 1})
    assert slatedb.create_store(settings) == 1
    return settings


def write(settings: Settings, *epochs: list[Note], close: bool = True) -> list[str]:
    """Write epochs to the store's only part as a fresh execution; returns what each snapshot gave."""
    part = slatedb.MetadataSink(settings).build_part("metadata.write", "part-00", None)
    try:
        return [_one_epoch(part, epoch) for epoch in epochs]
    finally:
        if close:
            part.close()


def _one_epoch(part: slatedb.MetadataPart, notes: list[Note]) -> str:
    part.write_batch(notes)
    return settled(part.snapshot())


def marker_of(settings: Settings) -> Marker:
    part = slatedb.MetadataPart(settings, "part-00")
    try:
        return part.marker
    finally:
        part.close()


def keys(settings: Settings, prefix: str = "") -> list[str]:
    return [key for key, _ in slatedb.scan(settings, prefix)]


def commits() -> float:
    return COMMITS.labels(store="metadata")._value.get()


def test_a_note_is_found_by_its_id_and_in_every_index(store: Settings) -> None:
    write(store, [note("n1", 1)])
    record = slatedb.get_note(store, "n1")
    assert record is not None
    assert record["title"] == "Engines"
    assert record["timestamp"] == "2026-05-01T00:00:01.000000Z"
    assert record["entities"] == [{"type": "PER", "text": "Ada Lovelace", "count": 1, "score": 0.9}]
    assert record["chunk_count"] == record["link_count"] == 1
    assert keys(store) == [
        "concept/analytical engine/n1",
        "entity/PER/ada lovelace/n1",
        "note/n1",
        "source/file/2026-05-01T00:00:01.000000Z/n1",
    ]
    assert [entry["note_id"] for entry in slatedb.find(store, "entity", "PER", "ADA  Lovelace")] == ["n1"]
    assert [entry["text"] for entry in slatedb.find(store, "concept", "Analytical Engine")] == ["analytical engine"]
    assert [entry["event_id"] for entry in slatedb.find(store, "source", "file")] == ["n1-1"]
    assert slatedb.find(store, "entity", "PER", "Ada") == []
    assert slatedb.get_note(store, "n2") is None


def test_a_new_version_leaves_no_stale_index_entry(store: Settings) -> None:
    first = note("n1", 1, entities=(("PER", "Ada Lovelace"), ("LOC", "London")), concepts=("engine", "loom"))
    write(store, [first, note("n2", 2)], [note("n1", 3, entities=(), concepts=("loom",), title="Looms")])
    assert keys(store, "concept/") == ["concept/analytical engine/n2", "concept/loom/n1"]
    assert keys(store, "entity/") == ["entity/PER/ada lovelace/n2"]
    assert keys(store, "source/") == [
        "source/file/2026-05-01T00:00:02.000000Z/n2",
        "source/file/2026-05-01T00:00:03.000000Z/n1",
    ]
    assert slatedb.find(store, "concept", "loom") == [
        {"note_id": "n1", "title": "Looms", "text": "loom", "score": 0.5}
    ]
    assert slatedb.count_notes(store) == 2


def test_the_last_of_several_versions_in_one_epoch_wins(store: Settings) -> None:
    write(store, [note("n1", 1, concepts=("a",)), note("n1", 3, concepts=("c",)), note("n1", 2, concepts=("b",))])
    assert keys(store, "concept/") == ["concept/c/n1"]
    assert slatedb.get_note(store, "n1")["event_id"] == "n1-3"  # type: ignore[index]


def test_a_deleted_note_goes_with_all_its_index_entries(store: Settings) -> None:
    write(store, [note("n1", 1), note("n2", 2)], [note("n1", 3, deleted=True)])
    assert slatedb.get_note(store, "n1") is None
    assert [key for key in keys(store) if key.endswith("n1")] == []
    assert slatedb.count_notes(store) == 1


def test_deleting_a_note_that_never_was_changes_nothing_but_the_marker(store: Settings) -> None:
    (marker,) = write(store, [note("n1", 1, deleted=True)])
    assert keys(store) == []
    assert Marker.from_json(marker).covers(Position("shard-0", 1))


def test_a_note_deleted_and_written_again_in_one_epoch_stays(store: Settings) -> None:
    write(store, [note("n1", 1)], [note("n1", 2, deleted=True), note("n1", 3)])
    assert keys(store, "source/") == ["source/file/2026-05-01T00:00:03.000000Z/n1"]
    assert slatedb.count_notes(store) == 1


def test_a_replay_of_committed_rows_writes_nothing(store: Settings) -> None:
    older, newer = note("n1", 1, title="old"), note("n1", 2, title="new")
    write(store, [older], [newer])
    before, contents, marker = commits(), list(slatedb.scan(store, "")), marker_of(store)
    # A resumed execution reads the store's own marker, however far back its snapshot lies.
    write(store, [older], [older, newer], [])
    assert marker_of(store) == marker
    assert commits() == before
    assert list(slatedb.scan(store, "")) == contents


def test_an_epoch_that_was_lost_before_its_commit_is_written_when_it_comes_again(store: Settings) -> None:
    crashed = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    crashed.write_batch([note("n1", 1)])
    write(store, [note("n1", 1), note("n2", 2)])
    assert keys(store, "note/") == ["note/n1", "note/n2"]
    with pytest.raises(FencedError):
        settled(crashed.snapshot())
    crashed.close()


def test_rows_after_the_marker_are_written_when_an_epoch_comes_again_in_other_cuts(store: Settings) -> None:
    write(store, [note("n1", 1), note("n2", 2)], close=False)
    write(store, [note("n2", 2), note("n3", 3), note("x", 1, shard="shard-1")])
    assert keys(store, "note/") == ["note/n1", "note/n2", "note/n3", "note/x"]
    assert marker_of(store) == Marker({"shard-0": (3, 0), "shard-1": (1, 0)}, 2)


def test_a_durable_epoch_outlives_a_writer_that_was_never_closed(store: Settings) -> None:
    write(store, [note("n1", 1)], close=False)
    assert slatedb.get_note(store, "n1") is not None


def test_a_second_opener_fences_the_first_for_good(store: Settings) -> None:
    first = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    _one_epoch(first, [note("n1", 1)])
    write(store, [note("n1", 2, title="second")])
    for _ in range(2):
        with pytest.raises(FencedError, match="newer execution"):
            _one_epoch(first, [note("n1", 3, title="first")])
    first.close()
    assert slatedb.get_note(store, "n1")["title"] == "second"  # type: ignore[index]


def test_being_fenced_in_the_last_epoch_is_told_when_all_sinks_have_ended(store: Settings) -> None:
    begin()
    part = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    other = CarefulPartition(NoVectors())
    part.write_batch([note("n1", 1)])
    newer = slatedb.MetadataPart(store, "part-00")
    part.snapshot()
    part.close()
    # Longer than the commit takes to find out.
    time.sleep(1)
    with pytest.raises(FencedError, match="newer execution"):
        other.close()
    assert isinstance(first_error(), FencedError)
    newer.close()


def test_a_database_is_closed_once_its_last_epoch_is_durable(store: Settings) -> None:
    part = slatedb.MetadataPart(store, "part-00")
    part.write_batch([note("n1", 1)])
    part.snapshot()
    part.begin_close()
    part.close()
    assert slatedb.get_note(store, "n1") is not None
    assert _threads() == []


def test_readers_do_not_fence_the_writer(store: Settings) -> None:
    part = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    for sequence in range(1, 4):
        _one_epoch(part, [note(f"n{sequence}", sequence)])
        assert slatedb.count_notes(store) == sequence
    part.close()


def test_the_number_of_parts_is_fixed_when_the_store_is_created(settings: Settings) -> None:
    assert slatedb.create_store(settings.model_copy(update={"metadata_parts": 3})) == 3
    later = settings.model_copy(update={"metadata_parts": 7})
    assert slatedb.create_store(later) == 3
    assert slatedb.MetadataSink(later).list_parts() == ["part-00", "part-01", "part-02"]


def test_a_store_that_was_never_created_says_so(settings: Settings) -> None:
    with pytest.raises(MissingError, match="pkm init"):
        slatedb.MetadataSink(settings).list_parts()
    with pytest.raises(MissingError, match="pkm init"):
        slatedb.get_note(settings, "n1")
    with pytest.raises(MissingError, match="pkm init"):
        slatedb.check_store(settings)


def test_a_store_that_was_never_written_reads_as_empty(settings: Settings) -> None:
    slatedb.create_store(settings)
    assert slatedb.get_note(settings, "n1") is None
    assert keys(settings) == []
    assert slatedb.count_notes(settings) == 0


def test_storage_that_does_not_answer_is_named(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "endpoint", lambda service: "http://127.0.0.1:9")
    monkeypatch.setattr(metadata_store, "WRITER_OPTIONS", {"object_store_max_retries": "0"})
    impatient = store.model_copy(update={"retry_seconds": 0.5})
    with pytest.raises(UnreachableError, match=f"s3://{store.bucket}/metadata/part-00"):
        slatedb.MetadataSink(impatient).build_part("metadata.write", "part-00", None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flow_writes_every_note_to_its_part_and_readers_merge_them_in_order(
    settings: Settings, workers: int
) -> None:
    settings = settings.model_copy(update={"metadata_parts": 3})
    slatedb.create_store(settings)
    notes = [note(f"n{number:02}", number) for number in range(20)]
    notes += [note("n03", 30, concepts=("late",)), note("n04", 31, deleted=True)]
    flow = Dataflow("metadata_test")
    slatedb.output("metadata", op.input("notes", flow, TestingSource(notes, batch_size=5)), settings=settings)
    if workers == 1:
        run_main(flow, epoch_interval=timedelta(0))
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=workers, epoch_interval=timedelta(0))
    found = keys(settings)
    assert all(one < other for one, other in pairwise(found))
    assert [key for key in found if key.startswith("note/")] == [f"note/n{n:02}" for n in range(20) if n != 4]
    assert slatedb.get_note(settings, "n03")["event_id"] == "n03-30"  # type: ignore[index]
    assert all(slatedb.get_note(settings, f"n{n:02}") for n in range(20) if n != 4)
    assert [key for key, _ in slatedb.scan(settings, "note/", limit=3)] == ["note/n00", "note/n01", "note/n02"]
    parts = obstore.list_with_delimiter(aws.object_store(settings), "metadata/")["common_prefixes"]
    assert sorted(Path(part).name for part in parts) == ["part-00", "part-01", "part-02"]


def test_no_thread_stays_behind(store: Settings) -> None:
    write(store, [note("n1", 1)])
    slatedb.get_note(store, "n1")
    rows: Iterator[tuple[str, bytes]] = slatedb.scan(store, "")
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert _threads() == []
    dropped = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    assert _threads() == ["metadata-part-00"]
    # The engine drops a partition like this when another step fails.
    del dropped
    gc.collect()
    assert _threads() == []


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("metadata")]


def test_more_rows_than_one_call_returns_are_all_read(store: Settings) -> None:
    write(store, [note("n1", 1, concepts=tuple(f"concept {number:04}" for number in range(1100)))])
    assert len(keys(store, "concept/")) == 1100


def test_commits_are_gathered_into_sorted_tables(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slatedb, "COMMITS_PER_TABLE", 4)
    part = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    for sequence in range(1, 11):
        _one_epoch(part, [note(f"n{sequence:02}", sequence), note("often", sequence, shard="shard-1")])
    tables = obstore.list_with_delimiter(aws.object_store(store), "metadata/part-00/compacted/")["objects"]
    assert len(tables) == 2
    assert keys(store, "note/") == [*(f"note/n{number:02}" for number in range(1, 11)), "note/often"]
    assert len(keys(store, "source/")) == slatedb.count_notes(store) == 11
    part.close()


def test_hostile_text_is_stored_and_found(store: Settings) -> None:
    hostile = note("a/b%", 1, title="half \ud800", entities=(("PER", "x/../y\x00"),), concepts=("c/d", "é" * 5000))
    write(store, [hostile])
    record = slatedb.get_note(store, "a/b%")
    assert record is not None
    assert record["title"] == "half ?"
    assert [entry["note_id"] for entry in slatedb.find(store, "entity", "PER", "X/../Y\x00")] == ["a/b%"]
    assert [entry["text"] for entry in slatedb.find(store, "concept", "é" * 5000)] == ["é" * 5000]
    write(store, [replace(note("a/b%", 2, deleted=True))])
    assert keys(store) == []


def test_a_version_that_the_marker_passed_over_is_written_when_it_comes_at_last(store: Settings) -> None:
    write(store, [note("n1", 1, title="old"), note("n2", 5, title="b"), note("n9", 9)])
    write(store, [note("n1", 1, title="old"), note("n1", 2, title="new")], [note("n2", 3, title="a"), note("n4", 4)])
    records = {name: slatedb.get_note(store, name) for name in ("n1", "n2", "n4")}
    assert {name: record and record["sequence_number"] for name, record in records.items()} == {
        "n1": "2",
        "n2": "5",
        "n4": "4",
    }
    before = commits()
    write(store, [note("n1", 1, title="old"), note("n1", 2, title="new"), note("n4", 4), note("n2", 5, title="b")])
    assert commits() == before
