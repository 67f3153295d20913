"""A stream of bad records stops the flow, with what failed committed, and the next start goes on behind it."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import FailureRateError
from core.settings import Settings, load_settings
from pkm.initialise import initialise
from pkm.running import run_flow


def put_bad(settings: Settings, numbers: range) -> None:
    from core import aws

    client = aws.kinesis_client(settings)
    for start in range(numbers.start, numbers.stop, 500):
        entries: list[Any] = [
            {"Data": b"not JSON %d" % number, "PartitionKey": str(number)}
            for number in range(start, min(start + 500, numbers.stop))
        ]
        assert client.put_records(StreamName=settings.stream, Records=entries)["FailedRecordCount"] == 0


def payloads(settings: Settings) -> list[bytes]:
    from sinks import iceberg_catalog

    return iceberg_catalog.scan(settings, "bronze.failures", columns=("payload",)).column("payload").to_pylist()


@pytest.mark.timeout(120)
def test_a_stream_of_bad_records_stops_the_flow_and_nothing_is_lost_or_doubled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PKM_ENRICH": "none",
        "PKM_UNTIL_CAUGHT_UP": "1",
        "PKM_SNAPSHOT_SECONDS": "1",
        "PKM_FAILURE_RATE_WINDOW": "100",
    }.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    settings = load_settings()
    initialise(settings)
    put_bad(settings, range(600))

    with pytest.raises(FailureRateError, match="step parse with NotJson"):
        run_flow(settings, flow="knowledge", workers=1)
    committed = payloads(settings)
    assert 100 <= len(committed) < 600, "what failed is there, but the stream was not drained"

    with pytest.raises(FailureRateError, match="100% of the last 10 records"):
        run_flow(settings, flow="knowledge", workers=1)
    assert len(payloads(settings)) <= len(committed) + 10, "a restart drains nothing"

    run_flow(settings.model_copy(update={"failure_rate_limit": 1.0}), flow="knowledge", workers=2)
    assert sorted(payloads(settings)) == sorted(b"not JSON %d" % number for number in range(600))
