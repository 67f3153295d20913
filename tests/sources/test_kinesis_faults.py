"""What a source partition makes of faults of the service, and of records that the stream has lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from core.errors import MissingError, UnreachableError
from kinesis_runner import SHARD, Runner
from memory_stream import NOON, MemoryStream, refusal
from sources.kinesis_loss import DATA_LOSSES, LOST_SECONDS


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
    with pytest.raises(UnreachableError, match="did not answer DescribeStreamSummary"):
        Runner(stream).run(600)
    assert stream.time - NOON < timedelta(seconds=5)


@pytest.mark.parametrize("fault", [refusal("AccessDeniedException", message="not allowed"), NoCredentialsError()])
def test_a_refusal_is_told_without_trying_again(fault: Exception) -> None:
    stream = MemoryStream()
    stream.faults.append(fault)
    with pytest.raises(UnreachableError):
        Runner(stream).run(1)
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
        Runner(stream).run(1)


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


def losses(kind: str) -> tuple[float, float]:
    return DATA_LOSSES.labels(kind)._value.get(), LOST_SECONDS.labels(kind)._value.get()


def test_a_refused_position_within_the_retention_loses_nothing() -> None:
    # Of a quiet shard the last record may be gone, when nothing has come for as long as records are kept.
    stream = MemoryStream()
    snapshot = reading_snapshot(stream)
    stream.put(SHARD, "next")
    runner = Runner(stream, snapshot=snapshot, until_caught_up=True)
    runner.step()
    stream.faults.append(refusal("InvalidArgumentException", message="did not come from this stream"))
    runner.finish()
    assert runner.data == ["next"]


def test_a_start_that_the_stream_refuses_is_told() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.step()
    stream.faults.append(refusal("InvalidArgumentException", message="not understood"))
    with pytest.raises(MissingError, match="not understood"):
        runner.run(1)


@pytest.mark.parametrize("on_data_loss", ["fail", "warn"])
def test_a_stop_for_longer_than_the_stream_keeps_records_is_noticed(on_data_loss: str) -> None:
    stream = MemoryStream()
    snapshot = reading_snapshot(stream)
    stream.put(SHARD, "trimmed before it was read")
    stream.time += timedelta(hours=30)
    stream.put(SHARD, "kept")
    stream.trim()
    runner = Runner(stream, snapshot=snapshot, on_data_loss=on_data_loss, until_caught_up=True)
    if on_data_loss == "fail":
        with pytest.raises(MissingError, match=r"was read up to .* keeps only .*PKM_ON_DATA_LOSS=warn"):
            runner.finish()
        return
    count, seconds = losses("trimmed")
    runner.finish()
    assert runner.data == ["kept"]
    assert losses("trimmed")[0] == count + 1
    assert losses("trimmed")[1] - seconds == pytest.approx(6 * 3600, abs=10)
    assert Runner(stream, snapshot=runner.epoch(), until_caught_up=True).finish() is None, "it is told once"


def test_a_stop_for_longer_is_no_loss_while_the_last_record_is_still_there() -> None:
    # Kinesis trims late: what matters is what is gone, not the time that has passed.
    stream = MemoryStream()
    snapshot = reading_snapshot(stream)
    stream.put(SHARD, "next")
    stream.time += timedelta(hours=30)
    runner = Runner(stream, snapshot=snapshot, until_caught_up=True)
    runner.finish()
    assert runner.data == ["next"]


def test_a_quiet_shard_that_was_watched_until_now_has_lost_nothing() -> None:
    stream = MemoryStream()
    stream.put(SHARD, "read")
    runner = Runner(stream)
    runner.run(1)
    stream.time += timedelta(hours=23)
    runner.run(5)
    stream.time += timedelta(hours=23)
    stream.trim()
    runner = Runner(stream, snapshot=runner.epoch(), until_caught_up=True)
    runner.finish()
    assert runner.data == []


def test_records_that_are_trimmed_while_the_flow_falls_behind_are_noticed() -> None:
    stream = MemoryStream()
    for number in range(3_000):
        stream.put(SHARD, f"{number}")
        stream.time += timedelta(minutes=1)
    runner = Runner(stream, batch_records=1_000)
    while not runner.data:
        runner.step()
    # Steps behind are so slow that nothing is read for a day.
    stream.time += timedelta(hours=40)
    stream.trim()
    with pytest.raises(MissingError, match="keeps only what came after"):
        runner.run(1e6)


def test_a_flow_that_reads_the_oldest_records_is_not_taken_for_one_that_lost_some() -> None:
    stream = MemoryStream()
    for number in range(3_000):
        stream.put(SHARD, f"{number}")
        stream.time += timedelta(minutes=1)
    runner = Runner(stream, batch_records=1_000, until_caught_up=True)
    runner.finish()
    assert runner.data == [f"{number}" for number in range(3_000)], "none doubled by looking twice"


@pytest.mark.parametrize("on_data_loss", ["fail", "warn"])
def test_a_stream_that_was_made_anew_is_noticed(on_data_loss: str) -> None:
    stream = MemoryStream()
    snapshot = reading_snapshot(stream)
    stream.time += timedelta(minutes=1)
    stream.make_anew()
    stream.put(SHARD, "of the new stream")
    runner = Runner(stream, snapshot=snapshot, on_data_loss=on_data_loss, until_caught_up=True)
    if on_data_loss == "fail":
        with pytest.raises(MissingError, match=r"deleted and made anew.*PKM_ON_DATA_LOSS=warn"):
            runner.finish()
        return
    count, _ = losses("recreated")
    runner.finish()
    assert runner.data == ["of the new stream"]
    assert losses("recreated")[0] == count + 1


def test_a_stream_that_is_made_anew_while_it_is_read_is_noticed() -> None:
    stream = MemoryStream()
    runner = Runner(stream)
    runner.run(2)
    stream.make_anew()
    stream.put(SHARD, "of the new stream")
    with pytest.raises(MissingError, match="deleted and made anew"):
        runner.run(60)


def test_a_start_that_was_pinned_too_long_ago_is_noticed() -> None:
    stream = MemoryStream()
    runner = Runner(stream, start=stream.time, pin=True)
    runner.run(1)
    snapshot = runner.epoch()
    stream.time += timedelta(hours=30)
    with pytest.raises(MissingError, match="is wanted from"):
        Runner(stream, snapshot=snapshot).run(1)
