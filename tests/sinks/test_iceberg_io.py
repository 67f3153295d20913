"""What is written to S3 for a table takes one request a file."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from core import aws
from core.settings import Settings
from faults.proxy import fault_proxy
from sinks import iceberg_catalog
from sinks.iceberg_files import write_table

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
