"""What the bronze tables tell about records that come again, and what a sink makes of what its marker passed over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from builders import document_of, event_of, record_of
from core.errors import MissingError
from core.records import Document, Failure, Note, Position
from core.settings import Settings
from sinks import iceberg_catalog, iceberg_history
from sinks.iceberg import IcebergSink, TablePartition
from sinks.iceberg_history import StreamHistory
from sinks.iceberg_tables import BRONZE_FAILURES, BRONZE_NOTES, SILVER_NOTES, TableSpec

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def tables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_NOTES, BRONZE_FAILURES, SILVER_NOTES))
    iceberg_catalog.create_tables(settings)


def document(number: int, note_id: str = "", *, deleted: bool = False, shard: str = "shard-0") -> Document:
    event = event_of(
        event_id=f"event-{number}",
        note_id=note_id or f"note-{number}",
        s3_key=f"raw/{number}",
        timestamp=NOON,
        deleted=deleted,
        record=record_of(number, shard_id=shard, arrival_time=NOON + timedelta(minutes=number)),
    )
    return document_of("" if deleted else f"text {number}", event=event)


def failure(number: int, step: str = "fetch") -> Failure:
    return Failure(step, "MissingObject", "gone", document(number).event.record, NOON)


def life(settings: Settings, table: TableSpec, *epochs: list[Document | Note | Failure]) -> None:
    """Run the table's sink from nothing but the table itself."""
    part: TablePartition = IcebergSink(table, settings=settings).build_part("flow.table", table.identifier, None)
    assert table.change is not None
    for epoch in epochs:
        part.write_batch([table.change(record, NOON + timedelta(hours=1), "1") for record in epoch])
        part.snapshot()
    part.close()


def numbers(settings: Settings, table: TableSpec) -> list[int]:
    rows = iceberg_catalog.scan(settings, table.identifier, columns=["sequence_number"]).to_pylist()
    return sorted(int(row["sequence_number"]) for row in rows)


def test_a_record_is_stored_failed_or_open(settings: Settings) -> None:
    life(settings, BRONZE_NOTES, [document(1), document(2)], [document(4), document(8)])
    life(settings, BRONZE_FAILURES, [failure(3), failure(4, step="windows")])
    events = [document(number).event for number in (1, 3, 4, 5, 8, 9)]

    history = StreamHistory(settings)
    found = history.outcomes(events)

    assert {place.sequence_number for place in found.stored} == {1, 4, 8}
    assert {place.sequence_number for place in found.failed} == {3}
    assert history.content(events[0]) == b"text 1"
    assert history.content(events[-1]) is None
    # What comes later may have arrived earlier, in another shard.
    assert history.outcomes([document(2).event]).stored == {Position("shard-0", 2)}
    assert not history.outcomes([replace(document(2, shard="shard-1").event)]).stored


def test_nothing_is_known_of_a_stream_that_was_never_read(settings: Settings) -> None:
    found = StreamHistory(settings).outcomes([document(1).event])
    assert not found.stored
    assert not found.failed


def test_files_are_read_when_their_time_comes_and_not_kept_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_history, "FILES_IN_MEMORY", 2)
    read: list[int] = []
    original = iceberg_history.read_files
    monkeypatch.setattr(iceberg_history, "read_files", lambda *given: read.append(1) or original(*given))
    life(settings, BRONZE_NOTES, *([document(number)] for number in range(1, 6)))
    history = StreamHistory(settings)
    for number in (1, 2, 3, 2, 5, 1):
        assert history.outcomes([document(number).event]).stored == {Position("shard-0", number)}
    assert len(read) == 5


def test_tables_that_were_not_created_are_named(settings: Settings) -> None:
    iceberg_catalog.load(settings).drop_table("bronze.failures")
    with pytest.raises(MissingError, match=r"bronze\.failures"):
        StreamHistory(settings).outcomes([document(1).event])


def test_a_record_that_the_marker_passed_over_is_stored_when_it_succeeds_at_last(settings: Settings) -> None:
    life(settings, BRONZE_NOTES, [document(1), document(3)])
    for _ in range(2):
        life(settings, BRONZE_NOTES, [document(1), document(2)], [document(3), document(4)])
        assert numbers(settings, BRONZE_NOTES) == [1, 2, 3, 4]


def test_a_dead_letter_that_the_marker_passed_over_is_stored(settings: Settings) -> None:
    life(settings, BRONZE_FAILURES, [failure(3)])
    for _ in range(2):
        life(settings, BRONZE_FAILURES, [failure(1), failure(3)])
        assert numbers(settings, BRONZE_FAILURES) == [1, 3]


def test_a_version_that_the_marker_passed_over_replaces_older_ones_and_no_newer_one(settings: Settings) -> None:
    def note(number: int, note_id: str, *, deleted: bool = False) -> Note:
        return Note(document(number, note_id, deleted=deleted), "1")

    life(settings, SILVER_NOTES, [note(1, "a"), note(2, "b"), note(5, "b"), note(9, "z")])
    # 3, 4 and 6 had failed; the lives see them in epochs of their own.
    life(settings, SILVER_NOTES, [note(1, "a"), note(2, "b"), note(3, "a")], [note(4, "b"), note(5, "b")])
    assert numbers(settings, SILVER_NOTES) == [3, 5, 9]
    life(settings, SILVER_NOTES, [note(2, "b")], [note(3, "a"), note(6, "a", deleted=True)], [note(9, "z")])
    assert numbers(settings, SILVER_NOTES) == [5, 9]
    life(settings, SILVER_NOTES, [note(3, "a"), note(6, "a", deleted=True)], [note(7, "c")])
    assert numbers(settings, SILVER_NOTES) == [5, 7, 9]
