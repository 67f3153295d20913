"""A web site for each test, and the stream behind the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from core import aws
from core.settings import Settings
from web_site import Site, web_site


@pytest.fixture
def site() -> Iterator[Site]:
    with web_site() as running:
        yield running


@pytest.fixture
def open_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a bucket and a stream, which let producers reach the site, at full speed."""
    client = aws.kinesis_client(settings)
    client.create_stream(StreamName=settings.stream, ShardCount=1)
    client.get_waiter("stream_exists").wait(StreamName=settings.stream, WaiterConfig={"Delay": 1})
    changes = {"allow_private_addresses": True, "web_pace_seconds": 0.0}
    for name in changes:
        monkeypatch.setenv(f"PKM_{name.upper()}", "1" if changes[name] else "0")
    return settings.model_copy(update=changes)


@pytest.fixture
def records(open_settings: Settings) -> Callable[[], list[dict[str, Any]]]:
    """Gives what is on the stream."""
    client = aws.kinesis_client(open_settings)

    def read() -> list[dict[str, Any]]:
        shard = client.list_shards(StreamName=open_settings.stream)["Shards"][0]["ShardId"]
        iterator = client.get_shard_iterator(
            StreamName=open_settings.stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        found: list[dict[str, Any]] = []
        while True:
            answer = client.get_records(ShardIterator=iterator, Limit=1000)
            found += [orjson.loads(record["Data"]) for record in answer["Records"]]
            iterator = answer["NextShardIterator"]
            if not answer["Records"]:
                return found

    return read
