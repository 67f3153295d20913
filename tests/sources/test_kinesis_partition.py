"""One source partition against a stream in memory that has the rules of the real service, and its faults on demand.

moto never ends a closed shard, doubles records when shards are merged, and neither throttles nor expires iterators
nor trims; this stand-in does what the Kinesis Data Streams API reference says for the four calls that we make.
"""

from __future__ import annotations

import email.utils
import itertools
import pickle
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import MissingError, UnreachableError
from core.records import RawRecord, Watermark
from sources.kinesis_client import StreamReader
from sources.kinesis_partition import KinesisPartition
from sources.kinesis_shards import PartitionState, ShardStart, ShardState

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def refusal(code: str, status: int = 400, message: str = "") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "Call",
    )


@dataclass
class StoredShard:
    parents: tuple[str, ...] = ()
    closed: bool = False
    records: list[tuple[int, datetime, bytes]] = field(default_factory=list)


class MemoryStream:
    """A stream with a clock of its own; `faults` are raised by the next calls, `empty_reads` answered by them."""

    def __init__(self, shards: int = 1) -> None:
        self.time = NOON
        self.shards: dict[str, StoredShard] = {}
        self.sequence = itertools.count(49_546_986_683_135_544_286_507_457_936_321_625_675_700_192_471_156_785_154)
        self.iterators: dict[str, tuple[str, int]] = {}
        self.faults: deque[Exception] = deque()
        self.empty_reads = 0
        self.exists = True
        self.calls: list[tuple[str, datetime]] = []
        self.meta = SimpleNamespace(endpoint_url="https://kinesis.test")
        for _ in range(shards):
            self.add_shard()

    def add_shard(self, *parents: str) -> str:
        name = f"shardId-{len(self.shards):012d}"
        self.shards[name] = StoredShard(parents)
        for parent in parents:
            self.shards[parent].closed = True
        return name

    def put(self, shard_id: str, data: str) -> None:
        assert not self.shards[shard_id].closed
        self.shards[shard_id].records.append((next(self.sequence), self.time, data.encode()))

    def list_shards(self, **asked: str) -> dict[str, Any]:
        assert len(asked) == 1, "the real service refuses stream and token together"
        self._called("ListShards")
        names = list(self.shards)
        at = int(asked.get("NextToken", 0))
        answer: dict[str, Any] = {"Shards": [self._describe(name) for name in names[at : at + 2]], **self._date()}
        if at + 2 < len(names):
            answer["NextToken"] = str(at + 2)
        return answer

    def get_shard_iterator(self, **asked: Any) -> dict[str, str]:
        self._called("GetShardIterator")
        shard_id, kind = asked["ShardId"], asked["ShardIteratorType"]
        if shard_id not in self.shards:
            raise refusal("ResourceNotFoundException", message=f"Shard {shard_id} does not exist")
        after = 0
        if kind == "AFTER_SEQUENCE_NUMBER":
            after = int(asked["StartingSequenceNumber"])
        elif kind == "AT_TIMESTAMP":
            # botocore sends whole seconds.
            whole = asked["Timestamp"].replace(microsecond=0)
            after = max((number for number, time, _ in self.shards[shard_id].records if time < whole), default=0)
        return {"ShardIterator": self._iterator(shard_id, after)}

    def get_records(self, **asked: Any) -> dict[str, Any]:
        self._called("GetRecords")
        if asked["ShardIterator"] not in self.iterators:
            raise refusal("ExpiredIteratorException")
        shard_id, after = self.iterators[asked["ShardIterator"]]
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
                    "PartitionKey": "key",
                }
                for sequence, time, data in taken
            ],
            "MillisBehindLatest": max(1, int((self.time - rest[0][1]).total_seconds() * 1000)) if rest else 0,
            **self._date(),
        }
        if rest or not shard.closed:
            answer["NextShardIterator"] = self._iterator(shard_id, taken[-1][0] if taken else after)
        return answer

    def _called(self, name: str) -> None:
        self.calls.append((name, self.time))
        if not self.exists:
            raise refusal("ResourceNotFoundException")
        if self.faults:
            raise self.faults.popleft()

    def _describe(self, name: str) -> dict[str, Any]:
        shard = self.shards[name]
        described: dict[str, Any] = {"ShardId": name, "SequenceNumberRange": {"StartingSequenceNumber": "0"}}
        if shard.closed:
            described["SequenceNumberRange"]["EndingSequenceNumber"] = "1"
        described |= dict(zip(("ParentShardId", "AdjacentParentShardId"), shard.parents, strict=False))
        return described

    def _iterator(self, shard_id: str, after: int) -> str:
        name = f"iterator-{len(self.iterators)}"
        self.iterators[name] = (shard_id, after)
        return name

    def _date(self) -> dict[str, Any]:
        return {"ResponseMetadata": {"HTTPHeaders": {"date": email.utils.format_datetime(self.time, usegmt=True)}}}


class Runner:
    """Calls a partition as Bytewax does: when it is due, with a snapshot at the end of each epoch."""

    def __init__(
        self,
        stream: MemoryStream,
        *,
        start: ShardStart = "trim-horizon",
        pin: bool = False,
        snapshot: Any = None,
        batch_records: int = 3,
        until_caught_up: bool = False,
        on_data_loss: str = "fail",
        partition: int = 0,
        partitions: int = 1,
    ) -> None:
        self.stream = stream
        state = (
            PartitionState.from_snapshot(snapshot, stream="notes", partitions=partitions)
            if snapshot
            else PartitionState("notes", partitions, start)
        )
        self.part = KinesisPartition(
            StreamReader(stream, "notes", now=lambda: stream.time),  # type: ignore[arg-type]
            state,
            partition=partition,
            pin=pin,
            batch_records=batch_records,
            until_caught_up=until_caught_up,
            on_data_loss=on_data_loss,
            now=lambda: stream.time,
            monotonic=lambda: (stream.time - NOON).total_seconds(),
            uniform=lambda: 0.5,
        )
        self.records: list[RawRecord] = []
        self.watermarks: list[Watermark] = []
        self.ended = False

    @property
    def data(self) -> list[str]:
        return [record.data.decode() for record in self.records]

    def step(self) -> list[RawRecord | Watermark]:
        awake = self.part.next_awake()
        # A call takes time, also when nothing is due.
        self.stream.time = max(awake or self.stream.time, self.stream.time) + timedelta(milliseconds=1)
        try:
            batch = self.part.next_batch()
        except StopIteration:
            self.ended = True
            return []
        self.records += [item for item in batch if isinstance(item, RawRecord)]
        self.watermarks += [item for item in batch if isinstance(item, Watermark)]
        return batch

    def run(self, seconds: float) -> None:
        end = self.stream.time + timedelta(seconds=seconds)
        while self.stream.time < end and not self.ended:
            self.step()

    def finish(self) -> None:
        for _ in range(1000):
            self.step()
            if self.ended:
                return
        raise AssertionError("the partition did not end")

    def epoch(self) -> Any:
        return pickle.loads(pickle.dumps(self.part.snapshot()))


def test_reads_are_batches_of_the_asked_size_and_at_most_five_a_second_and_shard() -> None:
    stream = MemoryStream(2)
    for number in range(20):
        stream.put(list(stream.shards)[number % 2], str(number))
    runner = Runner(stream)
    runner.run(10)
    assert sorted(runner.data, key=int) == [str(number) for number in range(20)]
    reads = [time for name, time in stream.calls if name == "GetRecords"]
    for start in reads:
        assert sum(start <= time < start + timedelta(seconds=1) for time in reads) <= 10


def test_an_idle_shard_is_asked_once_a_second() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.run(60)
    reads = [time for name, time in stream.calls if name == "GetRecords"]
    assert reads[1] - reads[0] < timedelta(seconds=0.5)
    assert timedelta(seconds=1) <= reads[-1] - reads[-2] < timedelta(seconds=1.1)
    assert 2 <= sum(name == "ListShards" for name, _ in stream.calls) <= 4


def test_an_empty_read_is_not_the_end() -> None:
    stream = MemoryStream()
    stream.put("shardId-000000000000", "a")
    stream.empty_reads = 3
    runner = Runner(stream, until_caught_up=True)
    runner.finish()
    assert runner.data == ["a"]


def test_a_partition_without_shards_ends_at_once_when_it_only_catches_up() -> None:
    runner = Runner(MemoryStream(1), until_caught_up=True, partition=1, partitions=2)
    runner.finish()
    assert runner.data == []
    assert [name for name, _ in runner.stream.calls] == ["ListShards"]
    assert runner.stream.time - NOON < timedelta(seconds=0.1)


def test_a_child_is_read_after_both_parents_are_drained() -> None:
    stream = MemoryStream(2)
    first, second = stream.shards
    for number in range(10):
        stream.put(first, f"first {number}")
    stream.put(second, "second")
    stream.put(stream.add_shard(first, second), "child")
    runner = Runner(stream, until_caught_up=True)
    runner.finish()
    assert runner.data[-1] == "child"
    assert len(runner.data) == 12


def test_children_that_appear_while_it_runs_are_found_at_once_when_their_parent_ends() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    stream.put("shardId-000000000000", "parent")
    runner.run(2)
    split_at = stream.time
    for child in (stream.add_shard("shardId-000000000000"), stream.add_shard("shardId-000000000000")):
        stream.put(child, child)
    runner.run(4)
    assert runner.data == ["parent", "shardId-000000000001", "shardId-000000000002"]
    assert stream.time - split_at < timedelta(seconds=6)


def test_catching_up_looks_for_the_children_of_a_shard_that_has_ended_meanwhile() -> None:
    stream = MemoryStream()
    runner = Runner(stream, until_caught_up=True)
    runner.step()
    stream.put(stream.add_shard("shardId-000000000000"), "child")
    runner.finish()
    assert runner.data == ["child"]


def test_a_caught_up_read_speaks_of_a_second_before_the_servers_answer() -> None:
    stream = MemoryStream()
    reader = StreamReader(stream, "notes", now=lambda: NOON + timedelta(days=1))  # type: ignore[arg-type]
    iterator = reader.shard_iterator("shardId-000000000000", ShardState("trim-horizon"))
    stream.time += timedelta(milliseconds=900)
    read = reader.read("shardId-000000000000", iterator, limit=1)
    assert read is not None
    assert (read.caught_up, read.time) == (True, NOON - timedelta(seconds=1))


def test_latest_means_the_first_start_also_after_a_restart_before_the_first_record() -> None:
    stream = MemoryStream()
    stream.put("shardId-000000000000", "before")
    stream.time += timedelta(milliseconds=300)
    runner = Runner(stream, start=stream.time, pin=True)
    snapshot = runner.epoch()
    stream.time += timedelta(minutes=10)
    stream.put("shardId-000000000000", "while it was down")
    runner = Runner(stream, snapshot=snapshot, until_caught_up=True)
    runner.finish()
    assert runner.data == ["while it was down"]


def test_latest_follows_the_servers_clock_when_ours_is_wrong() -> None:
    stream = MemoryStream()
    stream.put("shardId-000000000000", "before")
    stream.time += timedelta(seconds=2)
    runner = Runner(stream, start=stream.time + timedelta(minutes=5), pin=True)
    runner.run(1)
    stream.put("shardId-000000000000", "after")
    runner.run(2)
    assert runner.data == ["after"]


def test_throttling_server_errors_and_broken_connections_are_waited_out() -> None:
    stream = MemoryStream()
    stream.put("shardId-000000000000", "a")
    faults = [
        refusal("ProvisionedThroughputExceededException"),
        refusal("LimitExceededException"),
        refusal("InternalFailure", 500),
        refusal("Whatever", 503),
        EndpointConnectionError(endpoint_url="https://kinesis.test"),
        ReadTimeoutError(endpoint_url="https://kinesis.test"),
    ]
    stream.faults.extend(faults[:3])
    runner = Runner(stream, until_caught_up=True)
    while not any(name == "GetShardIterator" for name, _ in stream.calls):
        runner.step()
    stream.faults.extend(faults)
    runner.finish()
    assert runner.data == ["a"]
    # With uniform 0.5 the waits of six faults in a row come to half of 0.2 + 0.4 + … + 6.4 seconds.
    assert stream.time - NOON > timedelta(seconds=6)


def test_a_fault_that_does_not_pass_names_stream_shard_and_endpoint() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.run(1)
    stream.faults.extend(
        refusal("ProvisionedThroughputExceededException", message="Rate exceeded") for _ in range(99)
    )
    with pytest.raises(UnreachableError, match=r'stream "notes", shard shardId-000000000000 at https://kinesis.test'):
        runner.run(600)
    assert stream.time - NOON < timedelta(seconds=60)


def test_an_endpoint_that_never_answered_is_given_up_soon() -> None:
    stream = MemoryStream()
    stream.faults.extend(EndpointConnectionError(endpoint_url="https://kinesis.test") for _ in range(99))
    with pytest.raises(UnreachableError, match="did not answer ListShards"):
        Runner(stream).run(600)
    assert stream.time - NOON < timedelta(seconds=5)


@pytest.mark.parametrize("fault", [refusal("AccessDeniedException", message="not allowed"), NoCredentialsError()])
def test_a_refusal_is_told_without_trying_again(fault: Exception) -> None:
    stream = MemoryStream()
    stream.faults.append(fault)
    with pytest.raises(UnreachableError):
        Runner(stream).step()
    assert len(stream.calls) == 1


def test_an_expired_iterator_is_replaced_after_the_last_emitted_record() -> None:
    stream = MemoryStream()
    for number in range(9):
        stream.put("shardId-000000000000", str(number))
    runner = Runner(stream, until_caught_up=True)
    while len(runner.data) < 3:
        runner.step()
    stream.iterators.clear()
    runner.finish()
    assert runner.data == [str(number) for number in range(9)]


def test_a_missing_stream_is_told_with_what_to_do() -> None:
    stream = MemoryStream()
    stream.exists = False
    with pytest.raises(MissingError, match=r'stream "notes" does not exist: run `pkm init` or set PKM_STREAM'):
        Runner(stream).step()


def reading_snapshot(stream: MemoryStream) -> Any:
    stream.put("shardId-000000000000", "read")
    runner = Runner(stream)
    runner.run(1)
    assert runner.data == ["read"]
    return runner.epoch()


def test_a_shard_that_was_removed_before_its_end_stops_the_flow() -> None:
    stream = MemoryStream(2)
    snapshot = reading_snapshot(stream)
    del stream.shards["shardId-000000000000"]
    with pytest.raises(MissingError, match=r"no shard shardId-000000000000 .*PKM_ON_DATA_LOSS=warn"):
        Runner(stream, snapshot=snapshot).run(10)


def test_a_removed_shard_is_passed_over_with_a_warning_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    stream = MemoryStream(2)
    snapshot = reading_snapshot(stream)
    del stream.shards["shardId-000000000000"]
    stream.put("shardId-000000000001", "other")
    runner = Runner(stream, snapshot=snapshot, on_data_loss="warn", until_caught_up=True)
    runner.finish()
    assert runner.data == ["other"]
    assert "shardId-000000000000" in capsys.readouterr().out


@pytest.mark.parametrize("on_data_loss", ["fail", "warn"])
def test_a_position_that_the_stream_refuses_is_data_loss(on_data_loss: str) -> None:
    stream = MemoryStream()
    snapshot = reading_snapshot(stream)
    stream.put("shardId-000000000000", "next")
    runner = Runner(stream, snapshot=snapshot, on_data_loss=on_data_loss, until_caught_up=True)
    runner.step()
    stream.faults.append(refusal("InvalidArgumentException", message="did not come from this stream"))
    if on_data_loss == "fail":
        with pytest.raises(MissingError, match="did not come from this stream"):
            runner.finish()
    else:
        runner.finish()
        assert runner.data == ["read", "next"], "goes on at the trim horizon"


def test_a_watermark_is_the_first_item_after_a_snapshot_and_not_before_the_first_read() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.epoch()
    assert not isinstance(next(iter(runner.step()), None), Watermark), "nothing was read, nothing can be promised"
    runner.run(3)
    assert runner.watermarks == []
    before = stream.time
    runner.epoch()
    [mark] = runner.step()
    assert isinstance(mark, Watermark)
    assert (mark.source_partition, mark.source_partitions) == (0, 1)
    assert NOON - timedelta(seconds=2) <= mark.time <= before
    runner.epoch()
    assert runner.step() != [mark], "it is repeated only when it has advanced"


def test_a_watermark_stays_at_the_last_record_while_the_shard_is_behind() -> None:
    stream = MemoryStream()
    for number in range(9):
        stream.put("shardId-000000000000", str(number))
        stream.time += timedelta(minutes=1)
    runner = Runner(stream)
    while len(runner.data) < 3:
        runner.step()
    runner.epoch()
    [mark] = runner.step()
    assert mark.time == NOON + timedelta(minutes=2)


def test_shards_that_may_appear_unseen_hold_the_watermark_back_to_the_last_listing() -> None:
    stream = MemoryStream(1)
    runner = Runner(stream, partition=1, partitions=2)
    runner.step()
    listed_at = stream.time
    stream.add_shard("shardId-000000000000")
    runner.run(10)
    runner.epoch()
    [mark] = runner.step()
    assert mark.time <= listed_at


actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 20), st.integers(1, 5)),
        st.tuples(st.just("split"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("merge"), st.integers(0, 20), st.integers(1, 20)),
        st.tuples(st.just("steps"), st.integers(1, 12), st.integers(0, 1)),
        st.tuples(st.just("crash"), st.just(0), st.integers(0, 1)),
        st.tuples(st.just("fault"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("pause"), st.integers(1, 400), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(script=actions, partitions=st.integers(1, 3))
def test_no_record_is_lost_or_doubled_and_no_promise_is_broken(
    script: list[tuple[str, int, int]], partitions: int
) -> None:
    """Splits, merges, faults, pauses and crashes at any time; a crash goes back to the last snapshot."""
    stream = MemoryStream(2)
    put: list[str] = []
    snapshots: list[Any] = [None] * partitions
    committed: list[list[RawRecord]] = [[] for _ in range(partitions)]
    runners: list[Runner] = []

    def start(**options: Any) -> None:
        runners[:] = [
            Runner(stream, snapshot=snapshots[n], partition=n, partitions=partitions, **options)
            for n in range(partitions)
        ]

    def commit(number: int) -> None:
        runner = runners[number]
        snapshots[number] = runner.epoch()
        committed[number] += runner.records
        runner.records = []

    def step(number: int) -> None:
        for item in runners[number].step():
            if isinstance(item, Watermark):
                left = set(put) - {record.data.decode() for record in committed[number]}
                mine = {
                    data.decode()
                    for name, shard in stream.shards.items()
                    if int(name[-12:]) % partitions == number
                    for _, time, data in shard.records
                    if time <= item.time
                }
                assert not mine & left, "promised, but not emitted in an earlier epoch"

    start()
    for name, first, second in script:
        open_shards = [shard_id for shard_id, shard in stream.shards.items() if not shard.closed]
        if name == "put":
            for _ in range(second):
                put.append(f"record {len(put)}")
                stream.put(open_shards[first % len(open_shards)], put[-1])
                stream.time += timedelta(milliseconds=10)
        elif name == "split":
            parent = open_shards[first % len(open_shards)]
            stream.add_shard(parent)
            stream.add_shard(parent)
        elif name == "merge":
            pair = {open_shards[first % len(open_shards)], open_shards[(first + second) % len(open_shards)]}
            if len(pair) == 2:
                stream.add_shard(*sorted(pair))
        elif name == "steps":
            for number in range(partitions):
                for _ in range(first):
                    step(number)
                if second:
                    commit(number)
        elif name == "fault":
            if first == 0:
                stream.iterators.clear()
            elif first == 1:
                stream.empty_reads += 1
            else:
                stream.faults.append(refusal("InternalFailure", 500))
        elif name == "pause":
            stream.time += timedelta(seconds=first)
        elif name == "crash":
            start()
    stream.faults.clear()
    start(until_caught_up=True)
    for number in range(partitions):
        runners[number].finish()
        commit(number)
    everything = [record for records in committed for record in records]
    assert sorted(record.data.decode() for record in everything) == sorted(put)
    for records in committed:
        for shard_id in {record.position.shard_id for record in records}:
            numbers = [r.position.sequence_number for r in records if r.position.shard_id == shard_id]
            assert numbers == sorted(numbers), "in order within the shard"
