"""The vector store: versions, deletion, exactly once and search, on a real Lance dataset."""

from __future__ import annotations

import pickle
import threading
from datetime import timedelta
from typing import Any

import bytewax.operators as op
import lance as library
import numpy as np
import obstore
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, cluster_main, run_main

from core import aws
from core.deferred import settled
from core.errors import CommitError, FencedError, MissingError, SettingsError, SnapshotError, UnreachableError
from core.markers import Marker
from core.records import Note, Position
from core.settings import Settings
from sinks import lance, lance_dataset, lance_pending, lance_rows
from sinks.lance_pending import StoredEpoch, VectorState
from vectors import DIMENSION, START, commits, dataset, note, one_epoch, stored_objects, texts, write


def test_a_row_per_chunk_with_the_columns_of_the_documents(store: Settings) -> None:
    write(store, [note("n1", 1, "one", "two")])
    rows = dataset(store).to_table().sort_by("id").to_pylist()
    assert rows[1] == {
        "id": "n1#1",
        "note_id": "n1",
        "chunk": 1,
        "text": "two",
        "position": "shard-0/1/0",
        "embedding": [0.0, 1.0, 0.0, 0.0],
        "metadata": {"source": "file", "timestamp": START + timedelta(seconds=1), "processing_version": "7"},
    }
    assert lance.count_chunks(store) == 2
    assert lance.count_notes(store) == 1


def test_search_gives_the_nearest_chunks_with_their_cosine(store: Settings) -> None:
    along = [[2.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
    write(store, [note("n1", 1, "same", "between", "across", vectors=along), note("n2", 2)])
    hits = lance.search(store, np.array([5.0, 0.0, 0.0, 0.0], np.float32), k=2)
    assert [(hit.note_id, hit.chunk, hit.text, hit.source) for hit in hits] == [
        ("n1", 0, "same", "file"),
        ("n1", 1, "between", "file"),
    ]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.5**0.5], abs=1e-6)
    assert len(lance.search(store, np.array([5.0, 0.0, 0.0, 0.0], np.float32), k=100)) == 3


def test_a_shorter_version_leaves_no_stale_chunk(store: Settings) -> None:
    write(store, [note("n1", 1, "a", "b", "c"), note("n2", 2, "d")], [note("n1", 3, "new")])
    assert texts(store) == {"n1#0": "new", "n2#0": "d"}


def test_a_version_without_text_loses_its_chunks(store: Settings) -> None:
    write(store, [note("n1", 1, "a", "b")], [note("n1", 2)])
    assert texts(store) == {}


def test_the_newest_of_several_versions_in_one_epoch_wins(store: Settings) -> None:
    write(store, [note("n1", 1, "a", "b", "c"), note("n1", 3, "newest"), note("n1", 2, "older", "x")])
    assert texts(store) == {"n1#0": "newest"}


def test_an_epoch_of_deletions_alone_removes_all_chunks(store: Settings) -> None:
    write(store, [note("n1", 1, "a", "b"), note("n2", 2, "c")], [note("n1", 3, deleted=True)])
    assert texts(store) == {"n2#0": "c"}
    assert lance.count_notes(store) == 1


def test_versions_and_deletions_of_one_epoch_become_visible_together(store: Settings) -> None:
    write(store, [note("n1", 1, "a", "b"), note("n2", 2, "c")])
    before = dataset(store).version
    write(store, [note("n1", 3, "new"), note("n2", 4, deleted=True), note("n3", 5, "d")])
    contents = []
    for version in range(before, dataset(store).version + 1):
        rows = dataset(store).checkout_version(version).to_table(columns=["id", "text"]).to_pylist()
        found = sorted((row["id"], row["text"]) for row in rows)
        if found not in contents:
            contents.append(found)
    assert contents == [[("n1#0", "a"), ("n1#1", "b"), ("n2#0", "c")], [("n1#0", "new"), ("n3#0", "d")]]


def test_a_replay_of_committed_rows_writes_nothing(store: Settings) -> None:
    older, newer = note("n1", 1, "old", "b"), note("n1", 2, "new")
    markers = write(store, [older], [newer])
    before = commits()
    assert write(store, [older], [older, newer], []) == [markers[-1]] * 3
    assert commits() == before
    assert texts(store) == {"n1#0": "new"}


def test_a_crash_between_merge_and_marker_only_repeats_the_merge(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = write(store, [note("n1", 1, "a", "b")])
    part = lance.VectorPart(store)
    with monkeypatch.context() as patch:
        patch.setattr(library.LanceDataset, "update_metadata", _crash)
        with pytest.raises(FencedError, match="killed"):
            one_epoch(part, [note("n1", 2, "new"), note("n2", 3, "c")])
    assert texts(store) == {"n1#0": "new", "n2#0": "c"}
    assert dataset(store).metadata[lance.MARKER] == first
    (marker,) = write(store, [note("n1", 2, "new"), note("n2", 3, "c"), note("n2", 4, "d", "e")])
    assert texts(store) == {"n1#0": "new", "n2#0": "d", "n2#1": "e"}
    assert Marker.from_json(marker) == Marker({"shard-0": (4, 0)}, 2)


def test_a_crash_before_the_merge_loses_nothing_when_the_rows_come_again(store: Settings) -> None:
    crashed = lance.VectorPart(store)
    crashed.write_batch([note("n1", 1, "a")])
    write(store, [note("n1", 1, "a"), note("n2", 1, "b", shard="shard-1")])
    assert texts(store) == {"n1#0": "a", "n2#0": "b"}


def _crash(*_: Any) -> None:
    # An error that is not tried again: from here on the process does nothing.
    raise FencedError("killed")


def killed_with_a_stored_epoch(store: Settings, monkeypatch: pytest.MonkeyPatch, notes: list[Note]) -> VectorState:
    """Die when an epoch is stored and not merged; returns what the recovery snapshot says."""
    part = lance.VectorPart(store)
    with monkeypatch.context() as patch:
        patch.setattr(library.MergeInsertBuilder, "execute", _crash)
        part.write_batch(notes)
        state = settled(part.snapshot())
        with pytest.raises(FencedError, match="killed"):
            part._queue.wait()
    return state


def test_what_a_killed_process_has_stored_is_merged_by_the_next(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, [note("n1", 1, "a", "b"), note("n2", 2, "c")])
    state = killed_with_a_stored_epoch(store, monkeypatch, [note("n1", 3, "new"), note("n2", 4, deleted=True)])
    assert texts(store) == {"n1#0": "a", "n1#1": "b", "n2#0": "c"}
    assert len(stored_objects(store)) == 1

    # Recovery state is pickled.
    resumed = lance.VectorPart(store, pickle.loads(pickle.dumps(state)))
    assert texts(store) == {"n1#0": "new"}
    assert stored_objects(store) == []
    assert resumed.marker == Marker({"shard-0": (4, 0)}, 2)
    assert dataset(store).metadata[lance.MARKER] == resumed.marker.to_json()
    one_epoch(resumed, [note("n3", 5, "d")])
    resumed.close()
    assert texts(store) == {"n1#0": "new", "n3#0": "d"}


@pytest.mark.parametrize("object_is_there", [True, False])
def test_an_old_snapshot_brings_no_older_version_back(
    store: Settings, monkeypatch: pytest.MonkeyPatch, object_is_there: bool
) -> None:
    if object_is_there:
        monkeypatch.setattr("sinks.lance_pending.forget", lambda *_: None)
    part = lance.VectorPart(store)
    merging = threading.Event()
    execute = library.MergeInsertBuilder.execute

    def slowly(self: Any, rows: Any) -> Any:
        merging.wait(30)
        return execute(self, rows)

    monkeypatch.setattr(library.MergeInsertBuilder, "execute", slowly)
    part.write_batch([note("n1", 1, "a", "b"), note("n2", 2, "c")])
    old = settled(part.snapshot())
    assert len(old.pending) == 1, "the stream does not wait for the merge"
    merging.set()
    one_epoch(part, [note("n1", 3, "new"), note("n2", 4, deleted=True)])
    part.close()

    resumed = lance.VectorPart(store, old)
    # What was created and deleted in the records that come again may show until its deletion comes again.
    assert texts(store) in ({"n1#0": "new"}, {"n1#0": "new", "n2#0": "c"})
    one_epoch(resumed, [note("n1", 3, "new"), note("n2", 4, deleted=True)])
    resumed.close()
    assert texts(store) == {"n1#0": "new"}


def test_a_stored_epoch_that_is_gone_and_was_never_merged_stops_the_flow(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = killed_with_a_stored_epoch(store, monkeypatch, [note("n1", 1, "a")])
    obstore.delete(aws.object_store(store), stored_objects(store))
    with pytest.raises(SnapshotError, match=r"is gone, and .* has not got it"):
        lance.VectorPart(store, state)


def test_what_no_snapshot_can_name_any_more_is_swept(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    state = killed_with_a_stored_epoch(store, monkeypatch, [note("n1", 1, "a")])
    lance_pending.sweep(store, named=())
    assert len(stored_objects(store)) == 1, "young"
    longest = store.model_copy(update={"snapshot_retention_hours": 0})
    lance_pending.sweep(longest, named={one.path for one in state.pending})
    assert len(stored_objects(store)) == 1, "named"
    lance_pending.sweep(longest, named=())
    assert stored_objects(store) == []


def test_a_stored_epoch_reads_as_it_was_written() -> None:
    rows = lance_rows.rows_of([note("n1", 1, "a", "b"), note("n2", 2, "c")], dimension=DIMENSION)
    notes = {"n1": (Position("REPLAY/shard-0", 10**55, 3), False), "n2": (Position("shard-0", 2), True)}
    epoch = StoredEpoch(notes, rows, Marker({"shard-0": (2, 0)}, 7))
    read = StoredEpoch.from_bytes(epoch.to_bytes())
    assert (read.notes, read.marker) == (epoch.notes, epoch.marker)
    assert read.rows.equals(rows, check_metadata=True)
    assert read.only(["n2"]).rows["id"].to_pylist() == ["n2#0"]


def test_a_conflict_is_retried_and_in_the_end_reported(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_dataset, "LONGEST_WAIT_SECONDS", 0.01)
    part = lance.VectorPart(store.model_copy(update={"retry_seconds": 0.5}))
    update = library.LanceDataset.update_metadata
    conflicts = iter([OSError("Too many concurrent writers. Attempted 0 retries., /home/x.rs:1:1")] * 2)

    def conflict_twice(self: library.LanceDataset, values: dict[str, str | None]) -> dict[str, str]:
        for error in conflicts:
            raise error
        return update(self, values)

    monkeypatch.setattr(library.LanceDataset, "update_metadata", conflict_twice)
    one_epoch(part, [note("n1", 1, "a")])
    assert texts(store) == {"n1#0": "a"}

    def conflict_always(*_: Any) -> None:
        raise OSError("Too many concurrent writers. Attempted 0 retries., /home/x.rs:1:1")

    monkeypatch.setattr(library.LanceDataset, "update_metadata", conflict_always)
    with pytest.raises(CommitError, match=r"concurrent writers\. Attempted 0 retries\.$"):
        one_epoch(part, [note("n1", 2, "b")])


def test_a_commit_beside_compaction_is_not_lost(store: Settings) -> None:
    part = lance.VectorPart(store)
    for sequence in range(1, 4):
        one_epoch(part, [note(f"n{sequence}", sequence, "a", "b")])
    dataset(store).optimize.compact_files()
    one_epoch(part, [note("n1", 4, "new")])
    assert texts(store) == {"n1#0": "new", "n2#0": "a", "n2#1": "b", "n3#0": "a", "n3#1": "b"}
    assert Marker.from_json(dataset(store).metadata[lance.MARKER]).covers(Position("shard-0", 4))


def test_concurrent_creation_makes_one_dataset(settings: Settings) -> None:
    errors: list[BaseException] = []

    def create() -> None:
        try:
            lance.create_dataset(settings, dimension=DIMENSION)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    lance.create_dataset(settings, dimension=DIMENSION)
    assert lance.count_chunks(settings) == 0
    assert lance.search(settings, np.ones(DIMENSION, np.float32), k=3) == []


def test_another_dimension_is_refused_with_both_numbers(store: Settings) -> None:
    for refused in (
        lambda: lance.create_dataset(store, dimension=8),
        lambda: lance.check_dataset(store, dimension=8),
        lambda: lance.search(store, np.ones(8, np.float32), k=1),
        lambda: write(store, [note("n1", 1, "a", vectors=[[0.0] * 8])]),
    ):
        with pytest.raises(SettingsError, match=r"dimension 4.* 8"):
            refused()


def test_a_missing_dataset_or_bucket_says_what_to_run(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"bucket": "no-such-bucket"})
    for missing in (lambda: lance.count_chunks(settings), lambda: lance.VectorPart(elsewhere)):
        with pytest.raises(MissingError, match="pkm init"):
            missing()


def test_storage_that_does_not_answer_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "endpoint", lambda service: "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=settings.vectors_uri):
        lance.check_dataset(settings.model_copy(update={"retry_seconds": 0.5}), dimension=DIMENSION)


def test_chunks_without_vectors_are_kept_but_not_found(store: Settings) -> None:
    write(store, [note("n1", 1, "a", embedded=False), note("n2", 2, "b")])
    assert texts(store) == {"n1#0": "a", "n2#0": "b"}
    assert [hit.note_id for hit in lance.search(store, np.eye(DIMENSION, dtype=np.float32)[0], k=5)] == ["n2"]


def test_hostile_ids_and_texts_are_stored_and_replaced(store: Settings) -> None:
    hostile = "it's'; -- \ud800"
    write(store, [note(hostile, 1, "half \ud800", "b"), note("n2", 2, "c")])
    assert list(texts(store).values()) == ["half ?", "b", "c"]
    write(store, [note(hostile, 3, deleted=True)])
    assert texts(store) == {"n2#0": "c"}


def test_nothing_is_written_to_a_local_disk(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    write(store, [note(f"n{number}", number, "a " * 2000, "b") for number in range(200)])
    assert lance.count_chunks(store) == 400


def test_less_than_one_hit_is_refused(store: Settings) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        lance.search(store, np.ones(DIMENSION, np.float32), k=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flow_commits_each_note_once(store: Settings, workers: int) -> None:
    notes = [note(f"n{number:02}", number, "a", "b") for number in range(10)]
    notes += [note("n03", 20, "new"), note("n04", 21, deleted=True)]
    flow = Dataflow("vectors_test")
    lance.output("vectors", op.input("notes", flow, TestingSource(notes, batch_size=5)), settings=store)
    if workers == 1:
        run_main(flow, epoch_interval=timedelta(0))
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=workers, epoch_interval=timedelta(0))
    found = texts(store)
    assert len(found) == 8 * 2 + 1
    assert found["n03#0"] == "new"
    assert not any(key.startswith("n04") for key in found)


def test_rows_keep_the_order_of_chunks_and_vectors() -> None:
    rows = lance_rows.rows_of(
        [note("n1", 1, "a", "b"), note("n2", 2), note("n3", 3, "c", embedded=False), note("n4", 4, "d")],
        dimension=DIMENSION,
    )
    assert rows["id"].to_pylist() == ["n1#0", "n1#1", "n3#0", "n4#0"]
    assert rows["embedding"].to_pylist() == [[1, 0, 0, 0], [0, 1, 0, 0], None, [1, 0, 0, 0]]


def test_a_flow_without_enrichment_needs_no_dataset(settings: Settings) -> None:
    part = lance.VectorSink(settings.model_copy(update={"enrich": "none"})).build_part("write", "notes", None)

    part.write_batch([])

    assert part.snapshot() == VectorState()


def test_a_flow_with_enrichment_does_not_run_without_its_dataset(settings: Settings) -> None:
    with pytest.raises(MissingError, match="pkm init"):
        lance.VectorSink(settings).build_part("write", "notes", None)


def test_a_version_that_the_marker_passed_over_is_merged_when_it_comes_at_last(store: Settings) -> None:
    write(store, [note("n1", 1, "old"), note("n2", 5, "b"), note("n9", 9, "z")])
    write(store, [note("n1", 1, "old")], [note("n1", 2, "new"), note("n2", 3, "a")], [note("n2", 5, "b")])
    assert texts(store) == {"n1#0": "new", "n2#0": "b", "n9#0": "z"}
    before = commits()
    write(store, [note("n1", 1, "old"), note("n1", 2, "new")], [note("n2", 3, "a"), note("n4", 4)])
    assert commits() == before
