"""What a record changes in a table, and the arithmetic of epochs and pending commits: without I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.markers import Marker
from core.records import Chunk, Concept, Document, Entity, Event, Failure, Note, Position, RawRecord, WindowAggregate
from sinks.iceberg_commit import PendingCommit, Standing, standing
from sinks.iceberg_epoch import last_per_key, lowest_positions, superseded
from sinks.iceberg_rows import (
    Change,
    bronze_note_change,
    failure_change,
    metrics_change,
    silver_note_change,
)
from sinks.iceberg_tables import BRONZE_FAILURES, BRONZE_NOTES, SILVER_METRICS, SILVER_NOTES, TableSpec

LATE = datetime(2026, 11, 23, 23, 59, tzinfo=UTC)
SEQUENCE = 49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_001
RECORD = RawRecord(b"{}", "note", LATE, Position("shardId-000000000001", SEQUENCE, 3))
EVENT = Event(
    event_id="e1",
    note_id="n1",
    source_type="files",
    bucket="bucket",
    s3_key="raw/1",
    content_type=None,
    content_size=5,
    content_sha256=None,
    metadata={"path": "a.md"},
    timestamp=LATE,
    deleted=False,
    record=RECORD,
)
DOCUMENT = Document(
    event=EVENT,
    content="# Ada",
    content_type="text/markdown",
    text="Ada",
    title="Ada",
    frontmatter_json="{}",
    links=("https://example.org",),
    headers=("Ada",),
    language="en",
    word_count=1,
    char_count=3,
)
NOTE = Note(
    DOCUMENT,
    "v7",
    chunks=(Chunk(0, "Ada", 0, 3),),
    entities=(Entity("Ada", "PER", 0.9, 0, 3),),
    concepts=(Concept("ada", 0.5),),
)
AGGREGATE = WindowAggregate(LATE, LATE, "files", 3, 2, 9, ("a", "b", "c"))
FAILURE = Failure("parse", "ValueError", "not JSON", RECORD, LATE)

positions = st.builds(
    Position, st.sampled_from(["a", "b", "c"]), st.integers(min_value=0, max_value=30), st.integers(0, 2)
)


def columns(table: TableSpec) -> set[str]:
    return {field.name for field in table.schema.fields}


def test_every_row_has_exactly_the_columns_of_its_table() -> None:
    for table, record in [
        (BRONZE_NOTES, DOCUMENT),
        (BRONZE_FAILURES, FAILURE),
        (SILVER_NOTES, NOTE),
        (SILVER_METRICS, AGGREGATE),
    ]:
        assert table.change is not None
        row = table.change(record, LATE, "v7").row
        assert row is not None
        assert row.keys() == columns(table)
        assert all(row[field.name] is not None for field in table.schema.fields if field.required)


def test_a_sequence_number_of_56_digits_is_kept_as_a_string() -> None:
    for change in (bronze_note_change(DOCUMENT, LATE, "1"), failure_change(FAILURE, LATE, "1")):
        assert change.row is not None
        assert change.row["sequence_number"] == str(SEQUENCE)
        assert change.row["subsequence_number"] == 3
        assert change.position == RECORD.position


def test_the_partition_is_the_utc_day_of_processing() -> None:
    row = bronze_note_change(DOCUMENT, LATE, "1").row
    assert row is not None
    assert row["processing_date"] == date(2026, 11, 23)


def test_a_deletion_stays_in_bronze_without_content_and_leaves_silver() -> None:
    deleted = replace(DOCUMENT, event=replace(EVENT, deleted=True), content="", word_count=0)
    row = bronze_note_change(deleted, LATE, "1").row
    assert row is not None
    assert (row["deleted"], row["content"]) == (True, None)
    assert silver_note_change(replace(NOTE, document=deleted), LATE, "1") == Change(None, ("n1",), RECORD.position)


def test_a_revived_version_is_new_in_silver_only() -> None:
    revived = replace(DOCUMENT, event=replace(EVENT, revived=True))
    assert bronze_note_change(revived, LATE, "1") == Change(None, (), RECORD.position)
    assert silver_note_change(replace(NOTE, document=revived), LATE, "1").row is not None


def test_an_enriched_note_keeps_its_own_version_and_time() -> None:
    row = silver_note_change(replace(NOTE, processed_at=LATE), datetime(2027, 1, 1, tzinfo=UTC), "other").row
    assert row is not None
    assert row["processed_at"] == LATE
    assert row["processing_version"] == "v7"
    assert row["chunk_count"] == 1
    assert row["entities"] == [{"text": "Ada", "type": "PER", "score": 0.9, "start": 0, "end": 3}]


def test_metrics_are_keyed_by_window_and_source_and_have_no_position() -> None:
    change = metrics_change(AGGREGATE, LATE, "1")
    assert change.key == (LATE, "files")
    assert change.position is None
    assert change.row is not None
    assert change.row["avg_words"] == pytest.approx(4.5)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers())), max_size=30))
def test_the_last_change_of_a_key_wins(pairs: list[tuple[str, int | None]]) -> None:
    changes = [Change(None if value is None else {"value": value}, (key,)) for key, value in pairs]
    result = last_per_key(changes)
    assert set(result) == {change.key for change in changes}
    for key, row in result.items():
        assert row == next(change.row for change in reversed(changes) if change.key == key)


@given(st.lists(st.frozensets(st.tuples(st.sampled_from("abcdef"))), max_size=6))
def test_each_key_survives_in_the_last_part_that_has_it_and_nowhere_else(parts: list[frozenset[tuple[str]]]) -> None:
    kept = [keys - stale for keys, stale in zip(parts, superseded(parts), strict=True)]
    for key in frozenset().union(*parts):
        last = max(index for index, keys in enumerate(parts) if key in keys)
        assert [index for index, keys in enumerate(kept) if key in keys] == [last]


def pending_for(epoch: list[Position], before: Marker) -> PendingCommit:
    return PendingCommit("t", (), (), before.advanced(epoch, commit_number=1), lowest_positions(epoch))


@given(st.lists(positions, min_size=1, max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_a_commit_is_made_exactly_when_none_of_its_records_is_in_the_table(
    stream: list[Position], first: int, second: int
) -> None:
    stream = sorted(set(stream), key=lambda position: (position.sequence_number, position))
    start, committed_until = first % len(stream), second % (len(stream) + 1)
    epoch = stream[start:]
    pending = pending_for(epoch, Marker().advanced(stream[:start]))
    committed = Marker().advanced(stream[:committed_until])
    covered = [committed.covers(position) for position in epoch]
    result = standing(pending, committed=committed, found=False)
    assert result is (Standing.DONE if all(covered) else Standing.FOREIGN if any(covered) else Standing.OPEN)
    assert standing(pending, committed=committed, found=True) is Standing.DONE


def test_a_commit_without_positions_is_made_unless_it_is_found() -> None:
    pending = PendingCommit("t", (), (("k",),), Marker({}, 4))
    assert standing(pending, committed=Marker({}, 9), found=False) is Standing.OPEN
    assert standing(pending, committed=Marker({}, 4), found=True) is Standing.DONE
