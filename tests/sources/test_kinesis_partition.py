"""One source partition against a stream in memory that has the real service's rules, and its faults on demand."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from aggregates import aggregate_of
from core.records import Watermark
from kinesis_runner import EPOCH, SHARD, HangingCalls, Runner
from memory_stream import NOON, MemoryStream, shard_name
from sources.kinesis_client import Place, StreamReader
from sources.kinesis_notices import Notice


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


def test_an_idle_shard_is_asked_every_two_seconds() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.run(60)
    reads = [time for name, time in stream.calls if name == "GetRecords"]
    assert reads[1] - reads[0] < timedelta(seconds=0.5)
    assert timedelta(seconds=2) <= reads[-1] - reads[-2] < timedelta(seconds=2.1)
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
    assert [name for name, _ in runner.stream.calls] == ["DescribeStreamSummary", "ListShards"]
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
    iterator = reader.shard_iterator("shardId-000000000000", Place("TRIM_HORIZON"))
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


def aggregated(*user_records: tuple[str, str]) -> bytes:
    return aggregate_of([(key, None, data.encode()) for key, data in user_records])


def test_aggregated_records_are_unpacked_with_a_position_of_their_own() -> None:
    stream = MemoryStream()
    stream.put(SHARD, aggregated(("a", "1"), ("b", "2"), ("a", "3")))
    stream.put(SHARD, "4")
    runner = Runner(stream, until_caught_up=True, batch_records=2)
    runner.finish()
    assert runner.data == ["1", "2", "3", "4"]
    first = runner.records[0].position.sequence_number
    assert [record.position.subsequence_number for record in runner.records] == [0, 1, 2, 0]
    assert [record.position.sequence_number for record in runner.records] == [first] * 3 + [first + 1]
    assert [record.partition_key for record in runner.records] == ["a", "b", "a", "key"]


@pytest.mark.parametrize("shards", [1, 2])
def test_what_is_shown_ahead_is_what_comes_next(shards: int) -> None:
    stream = MemoryStream(shards)
    for number in range(5):
        for shard_id in stream.shards:
            stream.put(shard_id, f"{number}")
        if shards == 1:
            stream.put(SHARD, aggregated(("a", f"{number} a"), ("b", f"{number} b")))
    runner = Runner(stream, until_caught_up=True)
    runner.finish()
    handed_on = [record.position for record in runner.records]
    assert len(set(handed_on)) == (15 if shards == 1 else 10)
    for shown in filter(None, runner.shown):
        at = handed_on.index(shown[0])
        assert shown == handed_on[at : at + len(shown)]
    # Until a batch has its size, it is smaller than the next one.
    assert {position for shown in runner.shown for position in shown} >= set(handed_on[6:])


@pytest.mark.parametrize("emitted", range(8))
def test_a_crash_within_an_aggregate_loses_and_doubles_nothing(emitted: int) -> None:
    stream = MemoryStream()
    stream.put(SHARD, aggregated(("a", "0"), ("b", "1"), ("c", "2")))
    stream.put(SHARD, "3")
    stream.put(SHARD, aggregated(("a", "4"), ("b", "5"), ("c", "6")))
    first = Runner(stream, batch_records=1)
    while len(first.data) < emitted and len(first.data) < 7:
        first.step()
    second = Runner(stream, snapshot=first.epoch(), until_caught_up=True)
    second.finish()
    assert first.data + second.data == [str(number) for number in range(7)]


def test_an_aggregate_that_was_packed_for_another_shard_is_dropped_whole() -> None:
    # Its producer finds out and sends the user records again.
    stream = MemoryStream(2)
    keys = {shard_id: [] for shard_id in stream.shards}
    for number in range(20):
        shard_id = stream.put_by_key(f"key {number}", "plain")
        keys[shard_id].append(f"key {number}")
    mine, other = keys[shard_name(0)], keys[shard_name(1)]
    stream.put(SHARD, aggregated((mine[0], "dropped"), (other[0], "misplaced"), (mine[1], "dropped too")))
    stream.put(SHARD, aggregated((mine[0], "kept"), (mine[1], "kept")))
    runner = Runner(stream, until_caught_up=True)
    runner.finish()
    assert runner.data == ["plain"] * 20 + ["kept"] * 2


def test_a_record_that_only_looks_aggregated_is_passed_on_whole() -> None:
    stream = MemoryStream()
    whole = b"\xf3\x89\x9a\xc2 not an aggregate, but somebody's data"
    stream.put(SHARD, whole)
    runner = Runner(stream, until_caught_up=True)
    runner.finish()
    assert [record.data for record in runner.records] == [whole]


def test_reads_are_no_larger_than_they_need_to_be() -> None:
    stream = MemoryStream()
    for number in range(2_000):
        stream.put(SHARD, f"{number:05d}" * 2_000)
    runner = Runner(stream, until_caught_up=True, batch_records=1_000)
    limits = []
    answer = stream.get_records

    def noted(**asked: Any) -> Any:
        limits.append(asked["Limit"])
        return answer(**asked)

    stream.get_records = noted  # type: ignore[method-assign]
    runner.finish()
    assert len(runner.data) == 2_000
    assert limits[0] == 1_000, "a read of unknown records"
    assert set(limits[1:]) == {2 * 1024 * 1024 // 10_000}


def test_no_more_is_read_while_what_was_read_is_not_handed_on() -> None:
    stream = MemoryStream()
    for number in range(5_000):
        stream.put(SHARD, f"{number}")
    runner = Runner(stream, batch_records=1)
    runner.run(1)
    reads = sum(name == "GetRecords" for name, _ in stream.calls)
    assert reads == 2, "one that is handed on and one ahead"


def test_a_shard_whose_calls_hang_holds_up_no_other() -> None:
    stream = MemoryStream(2)
    for shard_id in stream.shards:
        stream.put(shard_id, shard_id)
    calls = HangingCalls(stream, hang=SHARD)
    runner = Runner(stream, calls=calls)
    runner.run(5)
    stream.put(shard_name(1), "more")
    runner.run(5)
    assert runner.data == [shard_name(1), "more"]


def test_shards_that_have_expired_leave_the_state() -> None:
    stream = MemoryStream()
    stream.put(SHARD, "parent")
    runner = Runner(stream)
    runner.run(1)
    stream.put(stream.add_shard(SHARD), "child")
    stream.add_shard(SHARD)
    runner.run(5)
    assert [shard[0] for shard in runner.epoch()["shards"]] == list(stream.shards)
    for _ in range(3):
        stream.time += timedelta(hours=10)
        runner.run(3)
    stream.trim()
    runner.run(25)
    assert SHARD not in stream.shards
    assert [shard[0] for shard in runner.epoch()["shards"]] == list(stream.shards)


def test_a_shard_that_is_missing_from_one_listing_is_not_read_twice() -> None:
    stream = MemoryStream()
    stream.put(SHARD, "parent")
    runner = Runner(stream)
    runner.run(1)
    stream.add_shard(SHARD)
    stream.add_shard(SHARD)
    runner.run(5)
    hidden = stream.shards.pop(SHARD)
    runner.run(25)
    stream.shards[SHARD] = hidden
    runner.run(50)
    assert runner.data == ["parent"]


def test_new_shards_are_found_within_half_a_minute_with_few_calls() -> None:
    stream = MemoryStream(2)
    runner = Runner(stream, partition=0, partitions=2)
    runner.run(5)
    # The parent belongs to the other partition, so nothing but the listing tells of the child.
    split_at = stream.time
    child = stream.add_shard(shard_name(1))
    runner.board.post(Notice(0, 1, shard_name(1)))
    stream.put(child, "child")
    while not runner.data:
        runner.step()
        runner.epoch()
    assert stream.time - split_at < timedelta(seconds=30)
    runner.run(120)
    listings = [time for name, time in stream.calls if name == "DescribeStreamSummary" and time > split_at]
    assert len(listings) <= 120 / 20 + 3


def test_a_watermark_is_the_first_item_after_a_snapshot_and_not_before_the_first_read() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.epoch()
    assert not isinstance(next(iter(runner.step()), None), Watermark), "nothing was read, nothing can be promised"
    runner.run(EPOCH.total_seconds() / 2)
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
    assert runner.watermarks
    assert all(mark.time <= listed_at for mark in runner.watermarks)
