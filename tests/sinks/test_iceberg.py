"""The sink: epochs, crashes at every moment, resumption from old state, and a real flow."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSource, run_main
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from builders import document_of, event_of, record_of
from core.deferred import settled
from core.errors import CommitError, MissingError
from core.records import Chunk, Document, Failure, Note, WindowAggregate
from core.settings import Settings
from sinks import iceberg, iceberg_catalog
from sinks.iceberg import IcebergSink, TablePartition, TableState
from sinks.iceberg_commit import Committer, PendingCommit
from sinks.iceberg_rows import Change
from sinks.iceberg_tables import (
    BRONZE_FAILURES,
    BRONZE_NOTES,
    GOLD_DAILY_ACTIVITY,
    SILVER_METRICS,
    SILVER_NOTES,
    TableSpec,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
FIRST = 49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000
SHARD = "shardId-000000000000"


def document(number: int, note: str | None = None, *, deleted: bool = False, text: str = "text") -> Document:
    event = event_of(
        event_id=f"event-{number}",
        note_id=note or f"note-{number}",
        s3_key=f"raw/{number}",
        content_type="text/plain",
        content_size=4,
        metadata={"path": f"{number}.txt"},
        timestamp=NOON,
        deleted=deleted,
        record=record_of(FIRST + number, arrival_time=NOON),
    )
    return document_of(text, event=event)


def note(number: int, note_id: str | None = None, *, deleted: bool = False, chunks: int = 1) -> Note:
    found = document(number, note_id, deleted=deleted)
    return Note(found, "1", chunks=tuple(Chunk(index, "text", 0, 4) for index in range(chunks)))


def changes(table: TableSpec, *records: object) -> list[Change]:
    assert table.change is not None
    return [table.change(record, NOON, "1") for record in records]


@pytest.fixture(autouse=True)
def tables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the tables that are used here: creating them takes most of the time of a test.
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_NOTES, BRONZE_FAILURES, SILVER_NOTES, SILVER_METRICS))
    iceberg_catalog.create_tables(settings)


def build(settings: Settings, table: TableSpec, state: TableState | None = None) -> TablePartition:
    # The state passes through the recovery store as pickle.
    resume_state = None if state is None else pickle.loads(pickle.dumps(state))
    return IcebergSink(table, settings=settings).build_part("table", table.identifier, resume_state)


def commits(table: Table) -> list[Snapshot]:
    """Snapshots that brought rows; each opening of the table left one without."""
    return [snapshot for snapshot in table.metadata.snapshots if snapshot.summary["added-records"]]


class Gate:
    """A committer that stands still until it is opened: a process that is killed before its commits."""

    def __init__(self, settings: Settings, table: TableSpec) -> None:
        real = iceberg_catalog.load(settings).load_table(table.identifier)
        self._commit = Committer(real, key_columns=table.key_columns).commit
        self.open = threading.Event()

    def commit(self, pending: PendingCommit) -> None:
        self.open.wait(60)
        self._commit(pending)


def gated(
    settings: Settings, table: TableSpec, state: TableState | None = None, **options: int
) -> tuple[TablePartition, Gate]:
    gate = Gate(settings, table)
    real = iceberg_catalog.load(settings).load_table(table.identifier)
    return TablePartition(real, table, commit=gate.commit, resume_state=state, **options), gate


def event_ids(settings: Settings, table: str = "bronze.notes") -> list[str]:
    return sorted(iceberg_catalog.scan(settings, table, columns=["event_id"])["event_id"].to_pylist())


def test_each_epoch_with_rows_is_one_commit(settings: Settings) -> None:
    part = build(settings, BRONZE_NOTES)
    part.write_batch(changes(BRONZE_NOTES, document(1), document(2)))
    part.write_batch(changes(BRONZE_NOTES, document(3)))
    part.snapshot()
    assert settled(part.snapshot()).commit_number == 1
    part.write_batch(changes(BRONZE_NOTES, document(4)))
    part.snapshot()
    part.close()
    assert event_ids(settings) == ["event-1", "event-2", "event-3", "event-4"]
    table = iceberg_catalog.load(settings).load_table("bronze.notes")
    assert len(commits(table)) == 2
    assert iceberg_catalog.row_count(settings, "bronze.notes") == 4


def test_bronze_is_partitioned_by_day_and_keeps_what_it_was_given(settings: Settings) -> None:
    part = build(settings, BRONZE_NOTES)
    assert BRONZE_NOTES.change is not None
    part.write_batch([BRONZE_NOTES.change(document(day), NOON + timedelta(days=day), "1") for day in range(2)])
    part.snapshot()
    part.close()
    table = iceberg_catalog.load(settings).load_table("bronze.notes")
    files = [task.file for task in table.scan(row_filter="processing_date = '2026-11-24'").plan_files()]
    assert [file.record_count for file in files] == [1]
    row = next(
        row for row in iceberg_catalog.scan(settings, "bronze.notes").to_pylist() if row["event_id"] == "event-1"
    )
    assert dict(row["metadata"]) == {"path": "1.txt"}
    assert row["sequence_number"] == str(FIRST + 1)
    assert row["timestamp"] == NOON


def test_a_crash_before_the_commit_loses_nothing(settings: Settings) -> None:
    part, _gate = gated(settings, BRONZE_NOTES)
    part.write_batch(changes(BRONZE_NOTES, document(1)))
    part.snapshot()
    part.write_batch(changes(BRONZE_NOTES, document(2)))
    state = settled(part.snapshot())
    assert [pending.commit_number for pending in state.pending] == [1, 2]
    assert event_ids(settings) == []
    resumed = build(settings, BRONZE_NOTES, state)
    assert event_ids(settings) == ["event-1", "event-2"]
    resumed.write_batch(changes(BRONZE_NOTES, document(3)))
    assert settled(resumed.snapshot()).commit_number == 3
    resumed.close()
    assert event_ids(settings) == ["event-1", "event-2", "event-3"]


def test_a_crash_after_the_commit_doubles_nothing(settings: Settings) -> None:
    part, gate = gated(settings, BRONZE_NOTES)
    part.write_batch(changes(BRONZE_NOTES, document(1)))
    state = settled(part.snapshot())
    gate.open.set()
    part.close()
    build(settings, BRONZE_NOTES, state).close()
    assert event_ids(settings) == ["event-1"]


@pytest.mark.parametrize("first_read_again", [0, 2, 4])
def test_a_replay_from_however_old_a_state_leaves_each_row_once(settings: Settings, first_read_again: int) -> None:
    states: list[TableState | None] = [None]
    part = build(settings, BRONZE_NOTES)
    for epoch in range(3):
        part.write_batch(changes(BRONZE_NOTES, document(2 * epoch), document(2 * epoch + 1)))
        states.append(settled(part.snapshot()))
    part.close()
    # The epochs of the replay are cut in other places.
    resumed = build(settings, BRONZE_NOTES, states[first_read_again // 2])
    resumed.write_batch(changes(BRONZE_NOTES, *(document(number) for number in range(first_read_again, 7))))
    resumed.snapshot()
    resumed.close()
    assert event_ids(settings) == [f"event-{number}" for number in range(7)]


def test_a_replay_of_nothing_new_makes_no_commit(settings: Settings) -> None:
    for _ in range(2):
        part = build(settings, BRONZE_NOTES)
        part.write_batch(changes(BRONZE_NOTES, document(1)))
        assert settled(part.snapshot()).commit_number == 1
        part.close()
    assert len(commits(iceberg_catalog.load(settings).load_table("bronze.notes"))) == 1


def silver(settings: Settings) -> dict[str, str]:
    rows = iceberg_catalog.scan(settings, "silver.notes", columns=["note_id", "event_id"]).to_pylist()
    assert len(rows) == len({row["note_id"] for row in rows})
    return {row["note_id"]: row["event_id"] for row in rows}


def test_silver_keeps_the_newest_version_and_drops_deleted_notes(settings: Settings) -> None:
    part = build(settings, SILVER_NOTES)
    part.write_batch(changes(SILVER_NOTES, note(1, "a"), note(2, "b"), note(3, "a"), note(4, "c")))
    part.snapshot()
    part.write_batch(changes(SILVER_NOTES, note(5, "b"), note(6, "c", deleted=True), note(7, "d")))
    part.snapshot()
    part.write_batch(changes(SILVER_NOTES, note(8, "d", deleted=True)))
    part.snapshot()
    part.close()
    assert silver(settings) == {"a": "event-3", "b": "event-5"}
    assert iceberg_catalog.row_count(settings, "silver.notes") == 2
    # Far back: every version comes again, none takes effect.
    again = build(settings, SILVER_NOTES)
    again.write_batch(changes(SILVER_NOTES, note(1, "a"), note(2, "b"), note(3, "a"), note(4, "c"), note(5, "b")))
    again.write_batch(changes(SILVER_NOTES, note(6, "c", deleted=True), note(7, "d"), note(8, "d", deleted=True)))
    again.write_batch(changes(SILVER_NOTES, note(9, "e")))
    again.snapshot()
    again.close()
    assert silver(settings) == {"a": "event-3", "b": "event-5", "e": "event-9"}


def test_a_crash_between_replacements_ends_with_the_newest_version(settings: Settings) -> None:
    part, _gate = gated(settings, SILVER_NOTES)
    part.write_batch(changes(SILVER_NOTES, note(1, "a"), note(2, "b")))
    part.snapshot()
    part.write_batch(changes(SILVER_NOTES, note(3, "a"), note(4, "b", deleted=True)))
    state = settled(part.snapshot())
    for _ in range(2):
        build(settings, SILVER_NOTES, state).close()
        assert silver(settings) == {"a": "event-3"}


def test_a_large_epoch_is_written_in_parts_and_committed_at_once(settings: Settings) -> None:
    real = iceberg_catalog.load(settings).load_table("silver.notes")
    committer = Committer(iceberg_catalog.load(settings).load_table("silver.notes"), key_columns=("note_id",))
    part = TablePartition(real, SILVER_NOTES, commit=committer.commit, flush_bytes=1500)
    records = [note(1, "a"), note(2, "b"), note(3, "c"), note(4, "a"), note(5, "b", deleted=True), note(6, "d")]
    part.write_batch(changes(SILVER_NOTES, *records))
    part.snapshot()
    part.close()
    assert silver(settings) == {"a": "event-4", "c": "event-3", "d": "event-6"}
    table = iceberg_catalog.load(settings).load_table("silver.notes")
    assert len(table.metadata.snapshots) == 1
    assert len(list(table.scan().plan_files())) == 2


def test_metrics_are_replaced_by_window_and_source(settings: Settings) -> None:
    def window(source_type: str, count: int) -> WindowAggregate:
        return WindowAggregate(
            NOON, NOON + timedelta(minutes=5), source_type, count, count, 7 * count, ("e",) * count
        )

    part = build(settings, SILVER_METRICS)
    for aggregates in ([window("git", 1), window("web", 2)], [window("git", 3)], [window("git", 3)]):
        part.write_batch(changes(SILVER_METRICS, *aggregates))
        part.snapshot()
    part.close()
    rows = iceberg_catalog.scan(settings, "silver.metrics").to_pylist()
    assert {(row["source_type"], row["count"], row["avg_words"], len(row["event_ids"])) for row in rows} == {
        ("git", 3, 7.0, 3),
        ("web", 2, 7.0, 2),
    }
    assert len(rows) == 2


def test_the_stream_waits_when_too_many_commits_are_pending(settings: Settings) -> None:
    part, gate = gated(settings, BRONZE_NOTES, max_pending_commits=1)
    part.write_batch(changes(BRONZE_NOTES, document(1)))
    part.snapshot()
    part.write_batch(changes(BRONZE_NOTES, document(2)))
    states: list[TableState] = []
    waiting = threading.Thread(target=lambda: states.append(settled(part.snapshot())))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    gate.open.set()
    waiting.join(30)
    assert len(states[0].pending) <= 1
    part.close()


CALLS: dict[str, Callable[[TablePartition], object]] = {
    "write_batch": lambda part: part.write_batch([]),
    "snapshot": lambda part: part.snapshot(),
    "close": lambda part: part.close(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_failed_commit_surfaces_at_every_later_call(settings: Settings, call: str) -> None:
    def fail(pending: PendingCommit) -> None:
        raise CommitError(f"table {pending.table}: no")

    real = iceberg_catalog.load(settings).load_table("bronze.notes")
    part = TablePartition(real, BRONZE_NOTES, commit=fail, max_pending_commits=0)
    part.write_batch(changes(BRONZE_NOTES, document(1)))
    with pytest.raises(CommitError, match=r"table bronze\.notes: no"):
        part.snapshot()
    with pytest.raises(CommitError, match=r"table bronze\.notes: no"):
        CALLS[call](part)


def test_a_table_that_was_not_created_is_named(settings: Settings) -> None:
    iceberg_catalog.load(settings).drop_table("bronze.failures")
    with pytest.raises(MissingError, match=r"bronze\.failures: create it with `pkm init`"):
        build(settings, BRONZE_FAILURES)


def test_a_table_without_a_stream_is_refused(settings: Settings) -> None:
    flow = Dataflow("refused")
    stream = op.input("input", flow, TestingSource([document(1)]))
    with pytest.raises(ValueError, match=r"gold\.daily_activity"):
        iceberg.output("gold", stream, table=GOLD_DAILY_ACTIVITY, settings=settings)


def flow_of(settings: Settings, numbers: list[object]) -> Dataflow:
    flow = Dataflow("iceberg")
    numbered = op.input("input", flow, TestingSource(numbers, batch_size=2))
    documents = op.map("document", numbered, lambda number: document(number, f"note-{number % 5}"))
    iceberg.output("bronze_notes", documents, table=BRONZE_NOTES, settings=settings)
    notes = op.map("note", documents, lambda found: Note(found, "1"))
    iceberg.output("silver_notes", notes, table=SILVER_NOTES, settings=settings)
    odd = op.filter("odd", documents, lambda found: found.event.position.sequence_number % 2 == 1)
    failures = op.map("failure", odd, lambda found: Failure("parse", "E", "m", found.event.record, NOON))
    iceberg.output("bronze_failures", failures, table=BRONZE_FAILURES, settings=settings)
    return flow


def test_a_flow_that_is_aborted_and_resumed_has_each_row_once(settings: Settings, tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    recovery = RecoveryConfig(str(tmp_path))
    numbers: list[object] = list(range(8))
    for place in (7, 4):
        numbers.insert(place, TestingSource.ABORT())
    for _ in range(3):
        run_main(flow_of(settings, numbers), epoch_interval=timedelta(0), recovery_config=recovery)
    assert event_ids(settings) == [f"event-{number}" for number in range(8)]
    assert silver(settings) == {
        "note-0": "event-5",
        "note-1": "event-6",
        "note-2": "event-7",
        "note-3": "event-3",
        "note-4": "event-4",
    }
    assert iceberg_catalog.row_count(settings, "bronze.failures") == 4


def test_a_flow_that_starts_over_without_its_state_has_each_row_once(settings: Settings) -> None:
    run_main(flow_of(settings, list(range(4))), epoch_interval=timedelta(0))
    run_main(flow_of(settings, list(range(8))), epoch_interval=timedelta(0))
    assert event_ids(settings) == [f"event-{number}" for number in range(8)]
    assert len(silver(settings)) == 5
