"""A stream for each test of a producer."""

from __future__ import annotations

from typing import Any

import pytest

from core import aws
from core.settings import Settings


@pytest.fixture
def kinesis(settings: Settings) -> Any:
    client = aws.kinesis_client(settings)
    client.create_stream(StreamName=settings.stream, ShardCount=1)
    client.get_waiter("stream_exists").wait(StreamName=settings.stream, WaiterConfig={"Delay": 1})
    return client
