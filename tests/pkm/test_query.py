"""SQL over the Iceberg tables: what a query may look like, what it may see, how it fails."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from core.errors import MissingError, QueryError
from core.settings import Settings
from pkm.query import run_sql
from sinks.iceberg_catalog import create_tables, load, load_table

TIME = datetime(2026, 11, 23, 9, tzinfo=UTC)


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """Tables with one row in bronze.notes and one in silver.metrics."""
    create_tables(settings)
    bronze = load_table(load(settings), settings, "bronze.notes")
    columns = {field.name: None for field in bronze.schema().fields}
    row = columns | {
        "event_id": "e1",
        "note_id": "n1",
        "source_type": "files",
        "content_size": 3,
        "metadata": [("path", "a.md"), ("size", "3")],
        "timestamp": TIME,
        "arrival_time": TIME,
        "shard_id": "shardId-000000000000",
        "sequence_number": "1",
        "subsequence_number": 0,
        "deleted": False,
        "word_count": 1,
        "char_count": 3,
        "processing_time": TIME,
        "processing_date": TIME.date(),
        "processing_version": "1",
    }
    append(bronze, row)
    metrics = {"window_start": TIME, "window_end": TIME, "source_type": "files", "count": 1, "avg_words": 1.0}
    append(load_table(load(settings), settings, "silver.metrics"), {**metrics, "event_ids": ["e1"]})
    return settings


def append(table: Table, row: dict[str, Any]) -> None:
    table.append(pa.Table.from_pylist([row], schema=table.schema().as_arrow()))


@pytest.mark.parametrize(
    "query",
    [
        "select event_id from bronze.notes",
        "select n.event_id from bronze.notes n",
        "select n.event_id from bronze.notes as n where n.note_id = 'n1'",
        'select event_id from "bronze"."notes"',
        "SELECT EVENT_ID AS event_id FROM Bronze.Notes",
        "select n.event_id from bronze.notes n join silver.metrics using (source_type)",
        "with recent as (select * from bronze.notes) select r.event_id from recent r",
        "from bronze.notes select event_id where event_id in (select unnest(event_ids) from silver.metrics)",
    ],
)
def test_a_table_is_found_however_the_query_names_it(filled: Settings, query: str) -> None:
    assert run_sql(filled, query) == [{"event_id": "e1"}]


def test_a_map_comes_back_as_an_object(filled: Settings) -> None:
    assert run_sql(filled, "select metadata from bronze.notes") == [{"metadata": {"path": "a.md", "size": "3"}}]


def test_times_are_utc(filled: Settings) -> None:
    (row,) = run_sql(filled, "select window_start, hour(window_start) as hour from silver.metrics")
    assert row == {"window_start": TIME, "hour": 9}


def test_a_query_without_a_table_needs_no_catalog(settings: Settings) -> None:
    assert run_sql(settings, "select 1 as one") == [{"one": 1}]


@pytest.mark.parametrize(
    "query", ["select * from bronze.nothing", "select * from notes", "select * from bronze.notes, gold.nothing"]
)
def test_a_table_that_is_none_of_ours_is_named_with_those_that_are(filled: Settings, query: str) -> None:
    with pytest.raises(MissingError, match=r"nothing|notes.*silver\.notes"):
        run_sql(filled, query)


def test_a_table_that_was_not_created_is_missing(settings: Settings) -> None:
    with pytest.raises(MissingError, match="pkm init"):
        run_sql(settings, "select * from bronze.notes n")


@pytest.mark.parametrize(
    "query",
    [
        "selec",
        "select nothing from bronze.notes",
        "select * from read_csv('/etc/passwd')",
        "copy bronze.notes to '/tmp/stolen.csv'",
        "attach '/tmp/other.db'",
        "set enable_external_access = true",
    ],
)
def test_a_query_that_can_not_be_run_is_said_so(filled: Settings, query: str) -> None:
    with pytest.raises(QueryError):
        run_sql(filled, query)


@pytest.mark.parametrize(
    "query",
    [
        "import database '/tmp'",
        "export database '/tmp/stolen'",
        "create secret s (type s3, key_id 'a', secret 'b')",
        "install httpfs",
        "pragma version",
        "drop table bronze.notes",
        "prepare p as select 1",
        "select 1; drop table bronze.notes",
        "",
        "-- nothing",
    ],
)
def test_only_one_query_that_reads_is_run(settings: Settings, query: str) -> None:
    with pytest.raises(QueryError, match="query"):
        run_sql(settings, query)


@pytest.mark.parametrize(
    "query",
    ["select * from glob('/*')", "select * from duckdb_secrets()", "explain analyze copy (select 1) to '{file}'"],
)
def test_a_query_touches_no_file(settings: Settings, tmp_path: Path, query: str) -> None:
    with pytest.raises(QueryError):
        run_sql(settings, query.format(file=tmp_path / "written"))
    assert not (tmp_path / "written").exists()


def test_names_of_this_program_are_no_tables(settings: Settings) -> None:
    with pytest.raises(MissingError, match="connection"):
        run_sql(settings, "select * from connection")


def test_a_result_that_would_fill_the_memory_is_refused(settings: Settings) -> None:
    with pytest.raises(QueryError, match="limit"):
        run_sql(settings, "select * from range(1000000000000)")


def test_a_query_has_a_part_of_the_memory(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkm.query.MEMORY_LIMIT", "64MB")

    with pytest.raises(QueryError, match="Out of Memory"):
        run_sql(settings, "select list(i) from range(20000000) numbers(i)")


def test_columns_of_one_name_stay_apart(settings: Settings) -> None:
    assert run_sql(settings, "select 1 as a, 2 as a, 3 as a_2") == [{"a": 1, "a_3": 2, "a_2": 3}]


def test_a_value_that_python_can_not_hold_is_said_so(settings: Settings) -> None:
    with pytest.raises(QueryError, match="cast it to text"):
        run_sql(settings, "select timestamp 'infinity' as time")
