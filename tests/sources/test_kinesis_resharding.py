"""Shards are split and merged while processes read them and are killed: every record once, each key in order."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest

from aggregates import aggregate_of
from core import aws
from core.settings import Settings, load_settings
from kinesis_servers import SERVERS, running
from loopback import cluster_addresses
from resharding_flow import FOLDER, rows_of
from sources import kinesis

TESTS = Path(__file__).parents[1]
KEYS = 500
# What is sent as it is, and what in aggregates of two user records.
AGGREGATED = range(0, KEYS, 10)
RUN_SECONDS = 240


@dataclass
class Stream:
    """A stream of four shards, what was put on it, and the processes that read it."""

    settings: Settings
    folder: Path
    client: Any
    sent: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    resharded: list[str] = field(default_factory=list)

    def send(self, rounds: int) -> None:
        """Put records of every key, `rounds` for each; a key's records never share a call, so they stay in order."""
        for _ in range(rounds):
            entries = []
            for number in range(KEYS):
                key = f"key-{number:03d}"
                pair = 2 if number in AGGREGATED else 1
                data = [self._record(key) for _ in range(pair)]
                content = aggregate_of([(key, None, one) for one in data]) if pair == 2 else data[0]
                entries.append({"Data": content, "PartitionKey": key})
                self.sent[key] += [one.decode() for one in data]
            while entries:
                answer = self.client.put_records(StreamName=self.settings.stream, Records=entries)
                entries = [
                    entry for entry, result in zip(entries, answer["Records"], strict=True) if "ErrorCode" in result
                ]

    def _record(self, key: str) -> bytes:
        number = len(self.sent[key])
        return orjson.dumps(
            {
                "event_id": f"{key}-{number}-{time.monotonic_ns()}",
                "source_type": "test",
                "timestamp": "2026-11-23T08:00:00Z",
                "s3_key": f"raw/{key}/{number}",
            }
        )

    def opened(self) -> list[dict[str, Any]]:
        shards = self.client.list_shards(StreamName=self.settings.stream)["Shards"]
        still = [shard for shard in shards if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
        return sorted(still, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))

    def split(self, place: int) -> None:
        """Split the open shard at this place in the order of hash keys."""
        shard = self.opened()[place]
        first, last = (int(shard["HashKeyRange"][f"{end}HashKey"]) for end in ("Starting", "Ending"))
        self.client.split_shard(
            StreamName=self.settings.stream,
            ShardToSplit=shard["ShardId"],
            NewStartingHashKey=str((first + last) // 2),
        )
        self._wait_until_active(f"split {shard['ShardId']}")

    def merge(self, place: int) -> None:
        """Merge two neighbouring open shards."""
        first, second = self.opened()[place : place + 2]
        self.client.merge_shards(
            StreamName=self.settings.stream,
            ShardToMerge=first["ShardId"],
            AdjacentShardToMerge=second["ShardId"],
        )
        self._wait_until_active(f"merge {first['ShardId']} {second['ShardId']}")

    def _wait_until_active(self, what: str) -> None:
        self.resharded.append(what)
        while True:
            answer = self.client.describe_stream_summary(StreamName=self.settings.stream)
            if answer["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                return
            time.sleep(0.02)

    def start(self, processes: int, **variables: str) -> list[subprocess.Popen[bytes]]:
        """Start the flow as a cluster of so many processes, with one recovery store that all could reach."""
        addresses = cluster_addresses(processes)
        self.settings.recovery_dir.mkdir(parents=True, exist_ok=True)
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "bytewax.run", "resharding_flow:flow"),
                    *("-r", str(self.settings.recovery_dir / str(number)), "-s", "1", "-b", "0"),
                    *(("-i", str(number), "-a", addresses) if processes > 1 else ("-w", "2")),
                ],
                cwd=TESTS.parent,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
                    "RUST_BACKTRACE": "0",
                    "PKM_LOG_LEVEL": "warning",
                    FOLDER: str(self.folder),
                    **variables,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for number in range(processes)
        ]
        self.processes += started
        return started

    def wait_for_commit(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Wait until something more is committed, or there is nothing more."""
        deadline = time.monotonic() + RUN_SECONDS
        before = len(rows_of(self.folder))
        while before == len(rows_of(self.folder)) < sum(map(len, self.sent.values())):
            assert time.monotonic() < deadline, self.printed(processes)
            assert all(process.poll() is None for process in processes), self.printed(processes)
            time.sleep(0.05)

    def kill(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Kill the last process with SIGKILL, then what is left of the cluster, and lose its memory."""
        assert all(process.poll() is None for process in processes), self.printed(processes)
        processes[-1].send_signal(signal.SIGKILL)
        time.sleep(0.3)
        for process in processes:
            process.kill()
            process.communicate(timeout=30)
        shutil.rmtree(self.settings.recovery_dir)

    def finish(self, processes: int) -> None:
        """Run the flow to the end of the stream."""
        started = self.start(processes, PKM_UNTIL_CAUGHT_UP="1")
        for process in started:
            try:
                printed, _ = process.communicate(timeout=RUN_SECONDS)
            except subprocess.TimeoutExpired:
                raise AssertionError(self.printed(started)) from None
            assert process.returncode == 0, printed.decode()[-4000:]

    @staticmethod
    def printed(processes: list[subprocess.Popen[bytes]]) -> str:
        for process in processes:
            process.kill()
        return "\n".join(process.communicate()[0].decode()[-2000:] for process in processes)

    def check(self) -> None:
        """See that each record was committed once, and those of each key in the order in which they were sent."""
        received: dict[str, list[str]] = defaultdict(list)
        shards = set()
        for key, data, shard_id in rows_of(self.folder):
            received[key].append(data)
            shards.add(shard_id)
        assert sum(map(len, received.values())) == sum(map(len, self.sent.values()))
        assert received == self.sent
        assert len(shards) > 4, "records came through shards that were made while the flow ran"


@pytest.fixture(params=SERVERS)
def stream(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Stream]:
    """A new stream on each server; recovery snapshots go to the local S3."""
    with ExitStack() as stack:
        url = stack.enter_context(running(request.param))
        monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", url)
        monkeypatch.setenv("PKM_BATCH_RECORDS", "200")
        load_settings.cache_clear()
        loaded = load_settings()
        client = boto3.client("kinesis", region_name=aws.region(loaded), endpoint_url=url)
        assert kinesis.create_stream(loaded)
        world = Stream(loaded, tmp_path, client)
        yield world
        for process in world.processes:
            process.kill()
            process.communicate(timeout=30)
        shutil.rmtree(loaded.recovery_dir, ignore_errors=True)


def reshard_and_kill(stream: Stream, *, rounds: int, processes: int) -> None:
    """Three splits and two merges while records are sent: some while the flow runs, some while it is killed."""
    steps = [
        lambda: stream.split(0),
        lambda: stream.split(3),
        "kill",
        lambda: stream.merge(0),
        "start",
        lambda: stream.split(2),
        "kill",
        lambda: stream.merge(1),
        "start",
    ]
    running_now = stream.start(processes)
    sender = threading.Thread(target=stream.send, args=(rounds,), daemon=True)
    sender.start()
    total = rounds * (KEYS + len(AGGREGATED))
    for number, step in enumerate(steps, start=1):
        while sum(map(len, stream.sent.values())) < total * number / (len(steps) + 1) and sender.is_alive():
            time.sleep(0.02)
        if step == "kill":
            stream.wait_for_commit(running_now)
            stream.kill(running_now)
        elif step == "start":
            running_now = stream.start(processes)
        else:
            step()  # type: ignore[operator]
    sender.join(timeout=RUN_SECONDS)
    assert not sender.is_alive()
    stream.wait_for_commit(running_now)
    stream.kill(running_now)
    stream.finish(processes)
    assert len(stream.resharded) == 5
    stream.check()


@pytest.mark.servers
@pytest.mark.timeout(300)
def test_two_processes_that_are_killed_while_the_stream_is_resharded_keep_every_key_in_order(stream: Stream) -> None:
    reshard_and_kill(stream, rounds=8, processes=2)


@pytest.mark.servers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stream", ["kinesalite"], indirect=True)
def test_a_backlog_of_reshardings_is_read_parents_first_by_two_processes(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small batches, so that a child that is read too soon comes between the records of its parents.
    monkeypatch.setenv("PKM_BATCH_RECORDS", "20")
    stream.send(6)
    for reshard in (stream.merge, stream.merge, stream.split):
        reshard(0)
        stream.send(1)
    stream.finish(2)
    stream.check()


@pytest.mark.endurance
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_hundred_thousand_records_arrive_once_and_in_order(stream: Stream, processes: int) -> None:
    reshard_and_kill(stream, rounds=182, processes=processes)
    assert sum(map(len, stream.sent.values())) >= 100_000
