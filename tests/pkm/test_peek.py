"""Records of the stream are shown, decoded, without moving anything."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import orjson
import pytest

from aggregates import aggregate_of
from core.errors import MissingError, UnreachableError
from core.records import Position
from core.settings import Settings, parse_start
from memory_stream import NOON, MemoryStream, refusal, shard_name
from pkm.peek import peek
from sources import kinesis_peek
from sources.kinesis_client import StreamReader


def look(stream: MemoryStream, position: str, count: int, slept: list[float] | None = None) -> list[str]:
    reader = StreamReader(stream, "notes", now=lambda: stream.time)  # type: ignore[arg-type]
    waits = [] if slept is None else slept

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        stream.time += timedelta(seconds=seconds)

    records = kinesis_peek.peek(
        Settings(retry_seconds=5), parse_start(position), count=count, reader=reader, sleep=sleep
    )
    return [record.data.decode() for record in records]


def filled(records: int, *, every: timedelta) -> MemoryStream:
    stream = MemoryStream(3)
    for number in range(records):
        stream.put_by_key(f"key {number}", f"{number}")
        stream.time += every
    return stream


@pytest.mark.parametrize("every", [timedelta(milliseconds=20), timedelta(seconds=30), timedelta(hours=1)])
def test_the_newest_are_found_however_long_ago_they_came(every: timedelta) -> None:
    stream = filled(30, every=every)
    assert look(stream, "latest", 7) == [f"{number}" for number in range(23, 30)]


def test_more_than_there_are_gives_all() -> None:
    assert look(filled(5, every=timedelta(minutes=1)), "latest", 100) == [f"{number}" for number in range(5)]
    assert look(filled(5, every=timedelta(minutes=1)), "trim-horizon", 100) == [f"{number}" for number in range(5)]
    assert look(MemoryStream(2), "latest", 3) == []


def test_the_oldest_and_those_from_a_time_or_a_place_come_in_order_of_arrival() -> None:
    stream = filled(30, every=timedelta(seconds=1))
    assert look(stream, "trim-horizon", 4) == ["0", "1", "2", "3"]
    later = NOON + timedelta(seconds=10)
    assert look(stream, f"timestamp:{later.isoformat()}", 3) == ["10", "11", "12"]
    shard = stream.shards[shard_name(1)]
    place = Position(shard_name(1), shard.records[2][0])
    mine = [record[2].decode() for record in shard.records[2:5]]
    assert look(stream, f"sequence:{place.shard_id}:{place.sequence_number}", 3) == mine


def test_aggregates_are_unpacked_and_closed_shards_are_read() -> None:
    stream = MemoryStream()
    stream.put(shard_name(0), aggregate_of([("a", None, b"1"), ("b", None, b"2")]))
    stream.time += timedelta(seconds=1)
    stream.put(stream.add_shard(shard_name(0)), "3")
    assert look(stream, "latest", 2) == ["2", "3"]


def test_faults_that_pass_are_waited_out_and_others_are_told() -> None:
    stream = filled(3, every=timedelta(seconds=1))
    stream.faults.extend(refusal("ProvisionedThroughputExceededException") for _ in range(4))
    slept: list[float] = []
    assert look(stream, "trim-horizon", 3, slept) == ["0", "1", "2"]
    assert sum(slept) >= 4 * 0.2
    stream.faults.extend(refusal("InternalFailure", 500) for _ in range(999))
    with pytest.raises(UnreachableError, match="attempts"):
        look(stream, "latest", 1)
    stream.faults.clear()
    stream.exists = False
    with pytest.raises(MissingError, match="pkm init"):
        look(stream, "latest", 1)


@pytest.mark.parametrize(
    ("data", "shown"),
    [(b'{"a": [1]}', {"a": [1]}), (b"text \xc3\xa9", "text é"), (b"\xff\x00", "base64:/wA="), (b"7", 7)],
)
def test_a_record_is_its_json_or_its_text_or_its_bytes(
    data: bytes, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = MemoryStream()
    stream.put(shard_name(0), data)
    monkeypatch.setattr(kinesis_peek, "read_client", lambda _: stream)
    (record,) = peek(Settings(), "trim-horizon", count=1)
    assert record.data == shown
    assert record.position == f"{shard_name(0)}:{stream.shards[shard_name(0)].records[0][0]}"
    assert orjson.dumps(record)
