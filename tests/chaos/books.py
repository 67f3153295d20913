"""What must be in every table, worked out from the stream's records alone, and the differences to what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import lance
import orjson

from chaos.enrichment import chunk_texts
from core import aws
from core.settings import Settings
from sinks import iceberg_catalog, slatedb

__all__ = ["Balance", "Expected", "balance", "differences", "expected"]

Place = tuple[str, str]
"""Shard and sequence number."""
SILVER_COLUMNS = ("note_id", "event_id", "text", "chunk_count", "word_count")


@dataclass
class Expected:
    """The tables after an undisturbed run."""

    records: int = 0
    rows: dict[Place, str] = field(default_factory=dict)
    failures: set[Place] = field(default_factory=set)
    duplicates: int = 0
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By note id: event id and text of the version that counts."""
    windows: dict[tuple[datetime, str], tuple[int, float, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Balance:
    """The books of a run: `records == rows + duplicates + dead_letters`, or something is lost or doubled."""

    records: int
    rows: int
    duplicates: int
    dead_letters: int
    lost: int
    doubled: int


def read_stream(settings: Settings) -> list[tuple[Place, datetime, bytes]]:
    """Read all records, shard by shard in their order."""
    client = aws.kinesis_client(settings)
    found = []
    for shard in client.list_shards(StreamName=settings.stream)["Shards"]:
        shard_id = shard["ShardId"]
        iterator = client.get_shard_iterator(
            StreamName=settings.stream, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while True:
            answer = client.get_records(ShardIterator=iterator, Limit=1000)
            if not answer["Records"]:
                break
            found += [
                (
                    (shard_id, record["SequenceNumber"]),
                    record["ApproximateArrivalTimestamp"].astimezone(UTC),
                    record["Data"],
                )
                for record in answer["Records"]
            ]
            iterator = answer["NextShardIterator"]
    return found


def expected(
    stream: list[tuple[Place, datetime, bytes]],
    contents: Mapping[str, bytes],
    *,
    window: timedelta,
    late_keys: set[str],
    stored: set[Place],
) -> Expected:
    """Work out every table. A record whose object came late counts as `stored` says: both outcomes are right."""
    result = Expected(records=len(stream))
    seen: dict[str, list[str]] = {}
    counted: dict[tuple[datetime, str], list[tuple[str, int | None]]] = {}
    for place, arrival, data in stream:
        event = _parsed(data)
        if event is None:
            result.failures.add(place)
            continue
        note_id, event_id, deleted = event["note_id"], event["event_id"], event.get("deleted", False)
        events = seen.setdefault(note_id, [])
        if events and events[-1] == event_id:
            result.duplicates += 1
            continue
        revived = event_id in events
        if revived:
            events.remove(event_id)
        events.append(event_id)
        text = "" if deleted else _text(event["s3_key"], contents)
        if text is None or (event.get("s3_key") in late_keys and place not in stored and not revived):
            result.failures.add(place)
            continue
        if revived:
            result.duplicates += 1
        else:
            result.rows[place] = event_id
            start = datetime.fromtimestamp(
                arrival.timestamp() // window.total_seconds() * window.total_seconds(), UTC
            )
            words = None if deleted else len(text.split())
            counted.setdefault((start, event["source_type"]), []).append((event_id, words))
        if deleted:
            result.notes.pop(note_id, None)
        else:
            result.notes[note_id] = (event_id, text)
    for key, members in counted.items():
        words = [number for _, number in members if number is not None]
        average = sum(words) / len(words) if words else 0.0
        result.windows[key] = (len(members), average, tuple(sorted(event_id for event_id, _ in members)))
    return result


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        event: dict[str, Any] = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return event if "source_type" in event else None


def _text(key: str, contents: Mapping[str, bytes]) -> str | None:
    try:
        return contents[key].decode()
    except (KeyError, UnicodeDecodeError):
        return None


def stored_places(settings: Settings) -> list[Place]:
    """Where the rows of bronze.notes come from."""
    rows = iceberg_catalog.scan(settings, "bronze.notes", columns=("shard_id", "sequence_number")).to_pylist()
    return [(row["shard_id"], row["sequence_number"]) for row in rows]


def failed_places(settings: Settings) -> list[Place]:
    """Where the rows of bronze.failures come from."""
    rows = iceberg_catalog.scan(settings, "bronze.failures", columns=("shard_id", "sequence_number")).to_pylist()
    return [(row["shard_id"], row["sequence_number"]) for row in rows]


def balance(settings: Settings, wanted: Expected) -> Balance:
    """Balance the books of the bronze tables."""
    rows, dead = Counter(stored_places(settings)), Counter(failed_places(settings))
    accounted = rows + dead
    places = wanted.rows.keys() | wanted.failures
    return Balance(
        records=wanted.records,
        rows=rows.total(),
        duplicates=wanted.duplicates,
        dead_letters=dead.total(),
        lost=sum(place not in accounted for place in places),
        doubled=sum(number - 1 for number in accounted.values()),
    )


def differences(settings: Settings, wanted: Expected) -> list[str]:
    """Say what is lost, doubled or wrong in any table; nothing when all is well."""
    found: list[str] = []
    bronze = iceberg_catalog.scan(
        settings, "bronze.notes", columns=("event_id", "shard_id", "sequence_number")
    ).to_pylist()
    rows = [((row["shard_id"], row["sequence_number"]), row["event_id"]) for row in bronze]
    found += _compared("bronze.notes", Counter(rows), Counter(wanted.rows.items()))
    found += _compared("bronze.failures", Counter(failed_places(settings)), Counter(wanted.failures))
    books = balance(settings, wanted)
    if books.records != books.rows + books.duplicates + books.dead_letters:
        found.append(f"the books do not balance: {books}")

    silver = iceberg_catalog.scan(settings, "silver.notes", columns=SILVER_COLUMNS).to_pylist()
    chunked = _has_vectors(settings)
    found += _compared(
        "silver.notes",
        Counter(
            (row["note_id"], row["event_id"], row["text"], row["chunk_count"], row["word_count"]) for row in silver
        ),
        Counter(
            (note_id, event_id, text, len(chunk_texts(text)) if chunked else 0, len(text.split()))
            for note_id, (event_id, text) in wanted.notes.items()
        ),
    )
    metrics = iceberg_catalog.scan(settings, "silver.metrics").to_pylist()
    found += _compared(
        "silver.metrics",
        Counter(
            (row["window_start"], row["source_type"], row["count"], row["avg_words"], tuple(row["event_ids"]))
            for row in metrics
        ),
        Counter((*key, *values) for key, values in wanted.windows.items()),
    )
    found += _metadata_differences(settings, wanted)
    if chunked:
        dataset = lance.dataset(settings.vectors_uri, storage_options=aws.lance_storage_options(settings))
        chunks = dataset.to_table(columns=["id", "text"]).to_pylist()
        found += _compared(
            "vectors",
            Counter((row["id"], row["text"]) for row in chunks),
            Counter(
                (f"{note_id}#{index}", line)
                for note_id, (_, text) in wanted.notes.items()
                for index, line in enumerate(chunk_texts(text))
            ),
        )
    return found


def _metadata_differences(settings: Settings, wanted: Expected) -> list[str]:
    records = {key: orjson.loads(value) for key, value in slatedb.scan(settings, "note/")}
    found = _compared(
        "metadata notes",
        Counter((record["note_id"], record["event_id"]) for record in records.values()),
        Counter((note_id, event_id) for note_id, (event_id, _) in wanted.notes.items()),
    )
    indexed = Counter(key for key, _ in slatedb.scan(settings, "source/"))
    listed = Counter(key for record in records.values() for key in record["index_keys"])
    return found + _compared("metadata index", indexed, listed)


def _has_vectors(settings: Settings) -> bool:
    try:
        lance.dataset(settings.vectors_uri, storage_options=aws.lance_storage_options(settings))
    except ValueError:
        return False
    return True


def _compared(name: str, there: Counter[Any], wanted: Counter[Any]) -> list[str]:
    lost, surplus = wanted - there, there - wanted
    return [
        *([f"{name} lacks {lost.total()}: {_some(lost)}"] if lost else []),
        *([f"{name} has {surplus.total()} too many: {_some(surplus)}"] if surplus else []),
    ]


def _some(counter: Counter[Any]) -> str:
    return "; ".join(str(item) for item in list(counter)[:3])
