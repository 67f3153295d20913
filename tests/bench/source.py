"""How fast the source is: through source and parse, against a bare loop of boto3, on one stream, in turns.

    python -m bench.source [--records 40000] [--rounds 3] [--server kinesalite]

Prints records a second (median of the rounds, with the lowest and the highest), CPU time per 1,000 records, and
the share of a core that an idle flow over 10 shards takes. The server is a process of its own on the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from core import aws, stopping
from core.settings import Settings
from core.telemetry import configure_logging
from kinesis_servers import SERVERS, running
from operators import parse
from pkm.stack import local_aws
from sources import kinesis

SHARDS = 4
IDLE_SHARDS = 10
IDLE_SECONDS = 30.0
WARM_UP_SECONDS = 5.0
QUIET_ENDS = threading.Event()


@dataclass(frozen=True)
class Measured:
    records: int
    seconds: float
    cpu_seconds: float


class CountingPart(StatelessSinkPartition[Any]):
    """Counts items, and notes when the last came."""

    def __init__(self, sink: CountingSink) -> None:
        self._sink = sink

    def write_batch(self, items: list[Any]) -> None:
        self._sink.count += len(items)
        self._sink.last_at = time.perf_counter()
        self._sink.last_cpu = time.process_time()


class CountingSink(DynamicSink[Any]):
    def __init__(self) -> None:
        self.count = 0
        self.last_at = self.last_cpu = 0.0

    def build(self, step_id: str, worker_index: int, worker_count: int) -> CountingPart:
        return CountingPart(self)


def fill(settings: Settings, records: int) -> None:
    client = aws.kinesis_client(settings)
    for at in range(0, records, 500):
        entries = [{"Data": record(number), "PartitionKey": f"note-{number}"} for number in range(at, at + 500)]
        answer = client.put_records(StreamName=settings.stream, Records=entries)
        assert answer["FailedRecordCount"] == 0


def record(number: int) -> bytes:
    """A record as our producers write it, of about 400 bytes."""
    return json.dumps(
        {
            "event_id": f"{number:032x}",
            "note_id": f"{number:032x}",
            "source_type": "files",
            "content_size": 1000 + number,
            "content_type": "text/markdown",
            "content_sha256": f"{number:064x}",
            "metadata": {"path": f"notes/2026/11/note-{number}.md", "host": "bench"},
            "timestamp": "2026-11-23T08:00:00Z",
            "s3_key": f"bronze/raw/files/{number:032x}",
        }
    ).encode()


def bare_loop(settings: Settings) -> Measured:
    """Read each shard to its end, as the API's examples do."""
    client = boto3.client("kinesis", region_name=aws.region(settings), endpoint_url=aws.endpoint("kinesis"))
    began, cpu = time.perf_counter(), time.process_time()
    count = 0
    for shard in client.list_shards(StreamName=settings.stream)["Shards"]:
        iterator = client.get_shard_iterator(
            StreamName=settings.stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while True:
            answer = client.get_records(ShardIterator=iterator, Limit=10_000)
            if not answer["Records"]:
                break
            count += len(answer["Records"])
            iterator = answer["NextShardIterator"]
    return Measured(count, time.perf_counter() - began, time.process_time() - cpu)


def source_and_parse(settings: Settings) -> Measured:
    """Run a flow of source and parse to the end of the stream; the time ends with the last record."""
    sink = CountingSink()
    flow = Dataflow("bench")
    stream = kinesis.input("kinesis", flow, settings=settings.model_copy(update={"until_caught_up": True}))
    parsed = parse.events("parse", stream.records, bucket=settings.bucket)
    op.output("events", parsed.events, sink)
    began, cpu = time.perf_counter(), time.process_time()
    run_main(flow)
    return Measured(sink.count, sink.last_at - began, sink.last_cpu - cpu)


class QuietPart(StatefulSourcePartition[int, None]):
    """Has nothing to say, once a second."""

    def next_batch(self) -> list[int]:
        if QUIET_ENDS.is_set():
            raise StopIteration
        return []

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=1)

    def snapshot(self) -> None:
        return None


class QuietSource(FixedPartitionedSource[int, None]):
    """As many partitions as the settings have by default."""

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(Settings.model_fields["source_partitions"].default)]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> QuietPart:
        return QuietPart()


def idle_share(stream: Stream[Any], flow: Dataflow, *, epoch: timedelta, stop: Callable[[], None]) -> float:
    """Return which part of a core a flow takes that has nothing to do; `stop` ends it."""
    used: list[float] = []

    def watch() -> None:
        time.sleep(WARM_UP_SECONDS)
        before = time.process_time()
        time.sleep(IDLE_SECONDS)
        used.append(time.process_time() - before)
        stop()

    op.output("records", stream, CountingSink())
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run_main(flow, epoch_interval=epoch)
    watcher.join()
    return used[0] / IDLE_SECONDS


def shown(name: str, rounds: list[Measured]) -> float:
    """Print the rounds of one contender; returns its median rate."""
    rates = sorted(one.records / one.seconds for one in rounds)
    cpu = statistics.median(one.cpu_seconds / one.records * 1e6 for one in rounds)
    median = statistics.median(rates)
    print(f"{name:20} {median:9,.0f} records/s ({rates[0]:,.0f} to {rates[-1]:,.0f})   CPU {cpu:6.1f} ms per 1,000")
    return median


def main() -> int:
    """Measure and print; returns 1 when a round did not read every record."""
    parser = argparse.ArgumentParser(prog="python -m bench.source", description=__doc__)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", choices=SERVERS, default="kinesalite")
    options = parser.parse_args()
    with running(options.server) as url, local_aws() as variables:
        os.environ |= {**variables, "AWS_ENDPOINT_URL_KINESIS": url}
        settings = Settings(stream="bench", shards=SHARDS, log_level="warning")
        configure_logging(settings)
        aws.s3_client(settings).create_bucket(Bucket=settings.bucket)
        kinesis.create_stream(settings)
        fill(settings, options.records)
        bare, ours = [], []
        for _ in range(options.rounds):
            bare.append(bare_loop(settings))
            ours.append(source_and_parse(settings))
        print(
            f"{options.records:,} records over {SHARDS} shards of {options.server}, {options.rounds} rounds in turns"
        )
        ratio = 1 / shown("bare boto3 loop", bare) * shown("source and parse", ours)
        print(f"ratio                {ratio:9.2f}")
        idle = Settings(stream="idle", shards=IDLE_SHARDS)
        kinesis.create_stream(idle)
        flow, alone = Dataflow("idle"), Dataflow("alone")
        engine = idle_share(op.input("quiet", alone, QuietSource()), alone, epoch=idle.epoch, stop=QUIET_ENDS.set)
        records = kinesis.input("kinesis", flow, settings=idle).records
        # No flow can run in this process after it.
        whole = idle_share(records, flow, epoch=idle.epoch, stop=stopping.request)
        print(f"{f'idle, {IDLE_SHARDS} shards':20} {whole:9.2%} of a core; {engine:.2%} with nothing but the engine")
    return int(any(one.records != options.records for one in (*bare, *ours)))


if __name__ == "__main__":
    sys.exit(main())
