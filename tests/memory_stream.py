"""A Kinesis stream in memory that has the rules of the real service, and its faults on demand.

moto never ends a closed shard, doubles records when shards are merged, and neither throttles nor expires iterators
nor trims; this stand-in does what the Kinesis Data Streams API reference says for the calls that the source makes.
"""

from __future__ import annotations

import email.utils
import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from sources.kinesis_aggregation import hash_key
from sources.kinesis_calls import Call

__all__ = ["NOON", "InlineCalls", "MemoryStream", "refusal", "shard_name"]

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
FIRST_SEQUENCE = 49_546_986_683_135_544_286_507_457_936_321_625_675_700_192_471_156_785_154
X = TypeVar("X")


def shard_name(number: int) -> str:
    return f"shardId-{number:012d}"


def refusal(code: str, status: int = 400, message: str = "") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "Call",
    )


class InlineCalls:
    """Makes calls at once, so that a test can step through time."""

    def submit(self, work: Callable[[], X]) -> Call[X]:
        call = Call(work)
        call.run()
        return call

    def close(self) -> None:
        pass


@dataclass
class StoredShard:
    hash_range: tuple[int, int]
    parents: tuple[str, ...] = ()
    closed: bool = False
    records: list[tuple[int, datetime, bytes, str]] = field(default_factory=list)


class MemoryStream:
    """A stream with a clock of its own; `faults` are raised by the next calls, `empty_reads` answered by them."""

    def __init__(self, shards: int = 1, *, time: datetime = NOON) -> None:
        self.time = time
        self.created_at = time - timedelta(days=30)
        self.retention = timedelta(hours=24)
        self.shards: dict[str, StoredShard] = {}
        self.sequence = itertools.count(FIRST_SEQUENCE)
        self.iterators: dict[str, tuple[str, int]] = {}
        self.faults: deque[Exception] = deque()
        self.empty_reads = 0
        self.exists = True
        self.calls: list[tuple[str, datetime]] = []
        self.meta = SimpleNamespace(endpoint_url="https://kinesis.test")
        self._lock = threading.RLock()
        width = 2**128 // shards
        for number in range(shards):
            last = 2**128 - 1 if number == shards - 1 else (number + 1) * width - 1
            self._add((number * width, last))

    def add_shard(self, *parents: str) -> str:
        """Close the parents and open a child: of one parent for a split's half, of two for a merge."""
        with self._lock:
            ranges = [self.shards[parent].hash_range for parent in parents]
            siblings = sum(shard.parents == parents for shard in self.shards.values())
            first, last = min(low for low, _ in ranges), max(high for _, high in ranges)
            if len(parents) == 1:
                middle = (first + last) // 2
                first, last = (middle + 1, last) if siblings else (first, middle)
            for parent in parents:
                self.shards[parent].closed = True
            return self._add((first, last), parents)

    def put(self, shard_id: str, data: str | bytes, *, key: str = "key") -> None:
        with self._lock:
            assert not self.shards[shard_id].closed
            content = data.encode() if isinstance(data, str) else data
            self.shards[shard_id].records.append((next(self.sequence), self.time, content, key))

    def put_by_key(self, key: str, data: str | bytes) -> str:
        """Put a record where its key belongs; returns the shard."""
        with self._lock:
            shard_id = next(
                name
                for name, shard in self.shards.items()
                if not shard.closed and shard.hash_range[0] <= hash_key(key) <= shard.hash_range[1]
            )
            self.put(shard_id, data, key=key)
            return shard_id

    def neighbours(self) -> list[tuple[str, str]]:
        """Return the pairs of open shards that may be merged."""
        opened = sorted((shard.hash_range, name) for name, shard in self.shards.items() if not shard.closed)
        return [(first, second) for (_, first), (_, second) in itertools.pairwise(opened)]

    def trim(self) -> None:
        """Remove what is older than the retention period, and closed shards that are empty then."""
        horizon = self.time - self.retention
        for shard in self.shards.values():
            shard.records = [record for record in shard.records if record[1] >= horizon]
        gone = [name for name, shard in self.shards.items() if shard.closed and not shard.records]
        for name in gone:
            del self.shards[name]

    def make_anew(self) -> None:
        """Delete the stream and create it with shards of the same names."""
        self.created_at = self.time
        self.iterators.clear()
        names = [name for name, shard in self.shards.items() if not shard.parents]
        self.shards = {name: StoredShard((0, 2**128 - 1)) for name in names}

    def describe_stream_summary(self, **asked: str) -> dict[str, Any]:
        with self._lock:
            self._called("DescribeStreamSummary")
            summary = {
                "StreamARN": f"arn:aws:kinesis:us-east-1:000000000000:stream/{asked['StreamName']}",
                "StreamCreationTimestamp": self.created_at,
                "RetentionPeriodHours": int(self.retention.total_seconds() // 3600),
            }
            return {"StreamDescriptionSummary": summary, **self._date()}

    def list_shards(self, **asked: str) -> dict[str, Any]:
        assert len(asked) == 1, "the real service refuses stream and token together"
        with self._lock:
            self._called("ListShards")
            names = list(self.shards)
            at = int(asked.get("NextToken", 0))
            answer: dict[str, Any] = {
                "Shards": [self._describe(name) for name in names[at : at + 2]],
                **self._date(),
            }
            if at + 2 < len(names):
                answer["NextToken"] = str(at + 2)
            return answer

    def get_shard_iterator(self, **asked: Any) -> dict[str, Any]:
        with self._lock:
            self._called("GetShardIterator")
            shard_id, kind = asked["ShardId"], asked["ShardIteratorType"]
            if shard_id not in self.shards:
                raise refusal("ResourceNotFoundException", message=f"Shard {shard_id} does not exist")
            after = 0
            if kind == "AFTER_SEQUENCE_NUMBER":
                after = int(asked["StartingSequenceNumber"])
            elif kind == "AT_SEQUENCE_NUMBER":
                after = int(asked["StartingSequenceNumber"]) - 1
            elif kind == "AT_TIMESTAMP":
                # botocore sends whole seconds.
                whole = asked["Timestamp"].replace(microsecond=0)
                after = max((record[0] for record in self.shards[shard_id].records if record[1] < whole), default=0)
            return {"ShardIterator": self._iterator(shard_id, after)}

    def get_records(self, **asked: Any) -> dict[str, Any]:
        with self._lock:
            self._called("GetRecords")
            if asked["ShardIterator"] not in self.iterators:
                raise refusal("ExpiredIteratorException")
            shard_id, after = self.iterators[asked["ShardIterator"]]
            if shard_id not in self.shards:
                raise refusal("ResourceNotFoundException")
            shard = self.shards[shard_id]
            left = [record for record in shard.records if record[0] > after]
            if self.empty_reads and left:
                self.empty_reads -= 1
                taken = []
            else:
                taken = left[: asked["Limit"]]
            rest = left[len(taken) :]
            answer: dict[str, Any] = {
                "Records": [
                    {
                        "SequenceNumber": str(sequence),
                        "ApproximateArrivalTimestamp": time,
                        "Data": data,
                        "PartitionKey": key,
                    }
                    for sequence, time, data, key in taken
                ],
                "MillisBehindLatest": (max(1, int((self.time - rest[0][1]).total_seconds() * 1000)) if rest else 0),
                **self._date(),
            }
            if rest or not shard.closed:
                answer["NextShardIterator"] = self._iterator(shard_id, taken[-1][0] if taken else after)
            return answer

    def _add(self, hash_range: tuple[int, int], parents: tuple[str, ...] = ()) -> str:
        number = max((int(name[-12:]) + 1 for name in self.shards), default=0)
        self.shards[shard_name(number)] = StoredShard(hash_range, parents)
        return shard_name(number)

    def _called(self, name: str) -> None:
        self.calls.append((name, self.time))
        if not self.exists:
            raise refusal("ResourceNotFoundException")
        if self.faults:
            raise self.faults.popleft()

    def _describe(self, name: str) -> dict[str, Any]:
        shard = self.shards[name]
        first, last = shard.hash_range
        described: dict[str, Any] = {
            "ShardId": name,
            "SequenceNumberRange": {"StartingSequenceNumber": "0"},
            "HashKeyRange": {"StartingHashKey": str(first), "EndingHashKey": str(last)},
        }
        if shard.closed:
            described["SequenceNumberRange"]["EndingSequenceNumber"] = "1"
        return described | dict(zip(("ParentShardId", "AdjacentParentShardId"), shard.parents, strict=False))

    def _iterator(self, shard_id: str, after: int) -> str:
        name = f"iterator-{len(self.iterators)}"
        self.iterators[name] = (shard_id, after)
        return name

    def _date(self) -> dict[str, Any]:
        return {"ResponseMetadata": {"HTTPHeaders": {"date": email.utils.format_datetime(self.time, usegmt=True)}}}
