"""What is written to S3 for a table takes one request a file, and metadata that this process knows takes none."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime

import obstore
import pyarrow as pa
import pytest

from builders import failure_of
from core import aws
from core.deferred import settled
from core.settings import Settings
from faults.proxy import fault_proxy
from sinks import iceberg_catalog, iceberg_metadata_files
from sinks.iceberg import IcebergSink
from sinks.iceberg_files import write_table
from sinks.iceberg_io import FewRequestsFileIO
from sinks.iceberg_rows import failure_change
from sinks.iceberg_tables import BRONZE_FAILURES

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_a_data_file_is_one_request_and_knows_its_size(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    iceberg_catalog.create_tables(settings)
    near = aws.s3_client(settings)
    with fault_proxy(aws.endpoint("s3") or "") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        table = iceberg_catalog.load_table(iceberg_catalog.load(settings), settings, "silver.metrics")
        window = {"window_start": NOON, "window_end": NOON, "source_type": "git", "count": 3, "avg_words": 1.0}
        rows = pa.Table.from_pylist([{**window, "event_ids": ["a"]}], schema=table.schema().as_arrow())
        proxy.passed.clear()
        (file,) = write_table(table, rows)
        assert dict(proxy.passed) == {"s3 PUT": 1}

    key = file.file_path.removeprefix(f"s3://{settings.bucket}/")
    head = near.head_object(Bucket=settings.bucket, Key=key)
    assert head["ContentLength"] == file.file_size_in_bytes > 0


def test_a_commit_reads_nothing_back_that_the_one_before_has_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    iceberg_catalog.create_tables(settings)
    with fault_proxy(aws.endpoint("s3") or "") as proxy:
        for service in ("S3", "GLUE"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", proxy.url)
        part = IcebergSink(BRONZE_FAILURES, settings=settings).build_part("flow.x", BRONZE_FAILURES.identifier, None)
        for number in range(3):
            proxy.passed.clear()
            part.write_batch([failure_change(failure_of(number), NOON, "1")])
            state = settled(part.snapshot())
            while state.pending:
                time.sleep(0.05)
                state = settled(part.snapshot())
        # The rows, their manifest, the list of manifests, the table's metadata.
        assert dict(proxy.passed) == {"s3 PUT": 4, "glue GetTable": 1, "glue UpdateTable": 1}
        part.close()
        assert iceberg_catalog.row_count(settings, BRONZE_FAILURES.identifier) == 3


def test_metadata_of_another_process_is_read_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    location = f"s3://{settings.bucket}/warehouse/{uuid.uuid4()}.metadata.json"
    obstore.put(aws.object_store(settings), location.removeprefix(f"s3://{settings.bucket}/"), b"{}")
    with fault_proxy(aws.endpoint("s3") or "") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        for _ in range(3):
            with FewRequestsFileIO(aws.catalog_properties(settings)).new_input(location).open() as stream:
                assert stream.read() == b"{}"
        assert proxy.passed["s3 GET"] == 1


def test_metadata_whose_writing_failed_is_neither_stored_nor_known(settings: Settings) -> None:
    io = FewRequestsFileIO(aws.catalog_properties(settings))
    location = f"s3://{settings.bucket}/warehouse/{uuid.uuid4()}.metadata.json"

    def fail() -> None:
        with io.new_output(location).create() as stream:
            stream.write(b"half of it")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    nowhere = f"s3://no-such-bucket-3/{uuid.uuid4()}.metadata.json"
    with pytest.raises(OSError, match="does not exist"), io.new_output(nowhere).create() as stream:
        stream.write(b"all of it")
    for missing in (location, nowhere):
        with pytest.raises(FileNotFoundError):
            io.new_input(missing).open()


def test_metadata_that_is_not_kept_any_more_is_read_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_metadata_files, "_known", iceberg_metadata_files.Known(most_bytes=100))
    io = FewRequestsFileIO(aws.catalog_properties(settings))
    contents = {
        f"s3://{settings.bucket}/warehouse/{uuid.uuid4()}-m0.avro": bytes([at]) * size
        for at, size in enumerate((60, 60, 101))
    }
    for location, content in contents.items():
        with io.new_output(location).create() as stream:
            stream.write(content)
    for location, content in contents.items():
        with io.new_input(location).open() as stream:
            assert stream.read() == content


def test_a_large_file_is_written_in_parts_and_read_back_whole(settings: Settings) -> None:
    iceberg_catalog.create_tables(settings)
    table = iceberg_catalog.load_table(iceberg_catalog.load(settings), settings, "bronze.failures")
    io = table.io
    location = f"s3://{settings.bucket}/warehouse/large.bin"
    content = bytes(range(256)) * 80_000
    output = io.new_output(location)
    with output.create() as stream:
        for start in range(0, len(content), 1_000_000):
            stream.write(content[start : start + 1_000_000])
    assert len(output) == len(content)
    with io.new_input(location).open() as read:
        assert read.read() == content
