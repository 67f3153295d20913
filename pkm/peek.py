"""Reads records of the stream as a person wants to see them, without a flow."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from core.records import RawRecord
from core.settings import Settings, parse_start
from sources import kinesis_peek

__all__ = ["Peeked", "peek"]


@dataclass(frozen=True, slots=True)
class Peeked:
    """A record of the stream; `data` is its JSON, else its text, else `base64:` and its bytes."""

    arrival_time: datetime
    shard_id: str
    sequence_number: str
    subsequence_number: int
    partition_key: str
    data: Any

    @property
    def position(self) -> str:
        """The place as `--from sequence:…` takes it, with the place in the aggregate if there is one."""
        part = f" #{self.subsequence_number}" if self.subsequence_number else ""
        return f"{self.shard_id}:{self.sequence_number}{part}"


def peek(settings: Settings, position: str, *, count: int) -> list[Peeked]:
    """Return the newest `count` records for the position "latest", else the first ones at it; moves nothing.

    Raises ValueError for a position that can't be read, and what `sources.kinesis_peek.peek` raises.
    """
    return [_peeked(record) for record in kinesis_peek.peek(settings, parse_start(position), count=count)]


def _peeked(record: RawRecord) -> Peeked:
    position = record.position
    return Peeked(
        arrival_time=record.arrival_time,
        shard_id=position.shard_id,
        sequence_number=str(position.sequence_number),
        subsequence_number=position.subsequence_number,
        partition_key=record.partition_key,
        data=_decoded(record.data),
    )


def _decoded(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(data).decode()}"
