"""The catalog: created once however often asked, chosen by settings alone, clear about what is missing."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from core.aws import object_store
from core.errors import MissingError, UnreachableError
from core.settings import Settings
from sinks import iceberg_catalog
from sinks.iceberg_files import encode_rows, put_files, restore_file, store_file
from sinks.iceberg_tables import TABLES

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def failure(number: int, **changes: object) -> dict[str, object]:
    return {
        "event_id": None,
        "step": "parse",
        "error": "ValueError",
        "message": f"message {number}",
        "arrival_time": NOON,
        "shard_id": "shardId-000000000000",
        "sequence_number": str(10**55 + number),
        "subsequence_number": 0,
        "s3_key": None,
        "payload": b"\xff\x00",
        "failed_at": NOON,
        **changes,
    }


def write_rows(table: Table, rows: list[dict[str, object]]) -> tuple[DataFile, ...]:
    encoded = encode_rows(table, rows)
    put_files(table, encoded.contents)
    return encoded.files


def append(settings: Settings, rows: list[dict[str, object]]) -> None:
    table = iceberg_catalog.load_table(iceberg_catalog.load(settings), settings, "bronze.failures")
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
        for file in write_rows(table, rows):
            snapshot.append_data_file(file)


def test_tables_can_be_created_twice_and_at_the_same_time(settings: Settings) -> None:
    with ThreadPoolExecutor(3) as threads:
        for names in threads.map(iceberg_catalog.create_tables, [settings] * 3):
            assert names == [spec.identifier for spec in TABLES]
    append(settings, [failure(1)])
    iceberg_catalog.create_tables(settings)
    assert iceberg_catalog.row_count(settings, "bronze.failures") == 1
    assert iceberg_catalog.table_names(settings) == {spec.identifier for spec in TABLES}
    iceberg_catalog.check_tables(settings)


def test_a_table_has_the_schema_partitions_and_keys_of_its_specification(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    catalog = iceberg_catalog.load(settings)
    for spec in TABLES:
        table = catalog.load_table(spec.identifier)
        columns = [(field.name, field.required) for field in table.schema().fields]
        assert columns == [(field.name, field.required) for field in spec.schema.fields]
        assert table.schema().identifier_field_names() == set(spec.key_columns)
        assert [field.name for field in table.spec().fields] == [field.name for field in spec.partition_spec.fields]
        assert table.properties["commit.retry.num-retries"] == "0"
    assert [field.name for field in catalog.load_table("bronze.notes").spec().fields] == ["processing_date"]


def test_the_sql_catalog_is_chosen_by_settings_alone(settings: Settings, tmp_path: Path) -> None:
    local = settings.model_copy(
        update={"catalog": "sql", "catalog_uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": None}
    )
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(iceberg_catalog.create_tables, [local] * 2))
    append(local, [failure(1), failure(2)])
    assert iceberg_catalog.row_count(local, "bronze.failures") == 2
    assert iceberg_catalog.table_names(settings) == set()
    table = iceberg_catalog.load(local).load_table("bronze.failures")
    assert table.location().startswith(f"s3://{settings.bucket}/warehouse/")


def test_what_was_written_is_read_back_with_columns_and_filter(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    append(settings, [failure(number) for number in range(3)])
    found = iceberg_catalog.scan(
        settings, "bronze.failures", columns=["message", "payload", "failed_at"], row_filter="message = 'message 1'"
    )
    assert found.to_pylist() == [{"message": "message 1", "payload": b"\xff\x00", "failed_at": NOON}]
    whole = iceberg_catalog.scan(settings, "bronze.failures")
    assert len(whole.to_pylist()[0]["sequence_number"]) == 56


def test_data_files_are_snappy_parquet_with_field_ids(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    table = iceberg_catalog.load(settings).load_table("bronze.failures")
    (file,) = write_rows(table, [failure(1)])
    key = file.file_path.removeprefix(f"s3://{settings.bucket}/")
    content = object_store(settings).get(key).bytes().to_bytes()
    with pq.ParquetFile(io.BytesIO(content)) as parquet:
        assert parquet.metadata.row_group(0).column(0).compression == "SNAPPY"
        ids = [parquet.schema_arrow.field(index).metadata[b"PARQUET:field_id"] for index in range(11)]
    assert ids == [str(number).encode() for number in range(1, 12)]


def test_a_data_file_survives_the_recovery_state(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    table = iceberg_catalog.load(settings).load_table("bronze.failures")
    (file,) = write_rows(table, [failure(1)])
    assert restore_file(pickle.loads(pickle.dumps(store_file(file)))) == file


def test_text_that_has_no_utf8_form_does_not_stop_a_write(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    append(settings, [failure(1, message="a\ud800b")])
    (row,) = iceberg_catalog.scan(settings, "bronze.failures").to_pylist()
    assert row["message"] == "a?b"


def test_a_missing_table_says_how_to_create_it(settings: Settings) -> None:
    for read in (iceberg_catalog.scan, iceberg_catalog.row_count, iceberg_catalog.marker):
        with pytest.raises(MissingError, match=r"no table bronze\.notes: create it with `pkm init`"):
            read(settings, "bronze.notes")
    with pytest.raises(MissingError, match=r"bronze\.notes, bronze\.failures.*`pkm init`"):
        iceberg_catalog.check_tables(settings)


def test_an_unreachable_catalog_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"glue catalog at http://127\.0\.0\.1:9"):
        iceberg_catalog.create_tables(settings)
    rest = settings.model_copy(update={"catalog": "rest", "catalog_uri": "http://user:secret@127.0.0.1:9/api"})
    with pytest.raises(UnreachableError, match=r"rest catalog at http://127\.0\.0\.1:9/api") as caught:
        iceberg_catalog.row_count(rest, "bronze.notes")
    assert "secret" not in str(caught.value)


def test_an_empty_table_has_no_rows_and_an_empty_marker(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    assert iceberg_catalog.row_count(settings, "gold.daily_activity") == 0
    assert iceberg_catalog.marker(settings, "silver.notes").positions == {}
