"""Why an event failed: the newest failure within the time in question, as of a second ago."""

from __future__ import annotations

from datetime import timedelta

import pytest

from builders import NOW, record_of
from core.errors import MissingError
from core.records import Failure
from core.settings import Settings
from sinks import iceberg_catalog, iceberg_failures
from sinks.iceberg import IcebergSink
from sinks.iceberg_failures import FailureReader
from sinks.iceberg_tables import BRONZE_FAILURES

MINUTE = timedelta(minutes=1)


def failure(number: int, event_id: str, *, step: str = "fetch", minutes: int = 0) -> Failure:
    record = record_of(number, arrival_time=NOW + minutes * MINUTE)
    return Failure(step, f"Error{number}", "message", record, NOW + number * MINUTE, event_id)


def commit(settings: Settings, *failures: Failure) -> None:
    part = IcebergSink(BRONZE_FAILURES, settings=settings).build_part("flow.table", BRONZE_FAILURES.identifier, None)
    assert BRONZE_FAILURES.change is not None
    part.write_batch([BRONZE_FAILURES.change(each, NOW, "1") for each in failures])
    part.snapshot()
    part.close()


def error_of(reader: FailureReader, event_id: str) -> str | None:
    found = reader.find(event_id, arrived_from=NOW - MINUTE, arrived_until=NOW + MINUTE)
    return None if found is None else found["error"]


def test_the_newest_failure_of_an_event_within_the_time_is_found(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_FAILURES,))
    monkeypatch.setattr(iceberg_failures, "FOLLOW_SECONDS", 0.0)
    reader = FailureReader(settings)
    with pytest.raises(MissingError, match=r"bronze\.failures"):
        error_of(reader, "a")
    iceberg_catalog.create_tables(settings)
    assert error_of(reader, "a") is None
    commit(
        settings,
        failure(1, "a"),
        failure(2, "b"),
        failure(3, "a"),
        # The document is stored; only its window missed it.
        failure(4, "late", step="windows"),
        failure(5, "earlier", minutes=-30),
    )
    assert [error_of(reader, event_id) for event_id in ("a", "b", "c", "late", "earlier")] == [
        "Error3",
        "Error2",
        None,
        None,
        None,
    ]


def test_the_table_is_loaded_once_a_second_at_most(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_FAILURES,))
    monkeypatch.setattr(iceberg_failures, "FOLLOW_SECONDS", 3600.0)
    iceberg_catalog.create_tables(settings)
    reader = FailureReader(settings)
    assert error_of(reader, "a") is None
    commit(settings, failure(1, "a"))
    assert error_of(reader, "a") is None
    assert error_of(FailureReader(settings), "a") == "Error1"
