"""Windows follow the stream's time: a replay a week later gives those of the live run, byte for byte."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, cluster_main, run_main

from builders import document_of, event_of
from core import stopping
from core.records import Document, Failure, RawRecord, WindowAggregate
from core.settings import Settings
from memory_stream import NOON, MemoryStream
from operators import windows
from sources import kinesis

LENGTH, LATENESS = timedelta(seconds=1), timedelta(seconds=1)
LIVE_SECONDS = 5.0
EPOCH = timedelta(seconds=0.5)
SOURCES = ("git", "web", "agent")


class RunningStream(MemoryStream):
    """A stream whose clock runs; `shift` puts it further on."""

    def __init__(self, shards: int) -> None:
        self._began = time.monotonic()
        self.shift = timedelta()
        super().__init__(shards)
        self.retention = timedelta(days=30)

    @property
    def time(self) -> datetime:  # type: ignore[override]
        return NOON + timedelta(seconds=time.monotonic() - self._began) + self.shift

    @time.setter
    def time(self, value: datetime) -> None:
        """Runs by itself."""


def produce(stream: RunningStream) -> None:
    """Put a record now and then, split and merge shards meanwhile, and be silent at the end."""
    chance = random.Random(7)
    for number in range(250):
        stream.put_by_key(f"note {number % 40}", f"{number}")
        if number == 80:
            stream.add_shard("shardId-000000000000")
            stream.add_shard("shardId-000000000000")
        if number == 160:
            stream.add_shard(*stream.neighbours()[0])
        time.sleep(chance.random() * 2 * LIVE_SECONDS / 250)


def windows_of(
    stream: RunningStream, monkeypatch: pytest.MonkeyPatch, *, workers: int = 1, slow: float = 0.0, live: bool = False
) -> bytes:
    """Run source and windows, and return the last row of each window, as bytes."""
    monkeypatch.setattr(kinesis, "read_client", lambda _: stream)
    settings = Settings(until_caught_up=not live)
    flow = Dataflow("event_time")
    inp = kinesis.input("inp", flow, settings=settings)

    def to_document(record: RawRecord) -> Document:
        time.sleep(slow)
        number = int(record.data)
        event = event_of(event_id=f"{number}", source_type=SOURCES[number % 3], record=record)
        return document_of("word " * (number % 7 + 1), event=event)

    documents = op.map("document", inp.records, to_document)
    counted = windows.tumbling("windows", documents, inp.watermarks, length=LENGTH, lateness=LATENESS)
    rows: list[WindowAggregate] = []
    late: list[Failure] = []
    op.output("rows", counted.aggregates, TestingSink(rows))
    op.output("late", counted.late, TestingSink(late))
    if workers == 1:
        run_main(flow, epoch_interval=EPOCH)
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=workers, epoch_interval=EPOCH)

    assert late == []
    last: dict[tuple[datetime, str], dict[str, Any]] = {}
    for row in rows:
        if live:
            assert (row.window_start, row.source_type) not in last, "a window closes once"
        last[row.window_start, row.source_type] = asdict(row)
    return orjson.dumps([last[key] for key in sorted(last)], option=orjson.OPT_INDENT_2)


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_replays_a_week_later_give_the_windows_of_the_live_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = RunningStream(4)
    # Silence must be noticed within the test: the watermark can't pass the last listing.
    monkeypatch.setattr("sources.kinesis_survey.LIST_SECONDS", 0.3)
    with monkeypatch.context() as patched:
        producer = threading.Thread(target=produce, args=(stream,))
        end = time.monotonic() + LIVE_SECONDS + 8
        patched.setattr(stopping, "requested", lambda: time.monotonic() > end)
        producer.start()
        live = windows_of(stream, patched, live=True)
        producer.join()

    rows = orjson.loads(live)
    assert sum(row["count"] for row in rows) == 250, "all windows were closed on the idle stream"
    assert len({row["window_start"] for row in rows}) >= 4

    stream.shift = timedelta(days=7)
    assert windows_of(stream, monkeypatch) == live
    assert windows_of(stream, monkeypatch, workers=2) == live
    assert windows_of(stream, monkeypatch, slow=0.02) == live
