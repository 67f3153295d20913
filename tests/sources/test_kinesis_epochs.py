"""When a partition's epochs end, and what is handed on within them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kinesis_runner import SHARD, Runner
from memory_stream import MemoryStream


@pytest.fixture
def stream() -> MemoryStream:
    """A stream with more than anybody reads here."""
    stream = MemoryStream()
    for number in range(200):
        stream.put(SHARD, str(number))
    return stream


@pytest.mark.parametrize(("partitions", "kept_waiting"), [(1, False), (2, True)])
def test_only_a_partition_beside_another_worker_waits_when_it_was_asked_once_in_an_epoch(
    stream: MemoryStream, partitions: int, kept_waiting: bool
) -> None:
    runner = Runner(stream, partitions=partitions)
    for _ in range(5):
        runner.step()
    waits = []
    for _ in range(10):
        stream.time += timedelta(seconds=1.2)
        awake = runner.part.next_awake()
        waits.append(awake is not None and awake - stream.time > timedelta(seconds=0.5))
        runner.step()
    assert any(waits) == kept_waiting


def test_what_is_read_when_an_epoch_is_over_belongs_to_the_next(stream: MemoryStream) -> None:
    runner = Runner(stream)
    while len(runner.data) < 9:
        runner.step()
    handed_on = len(runner.data)
    # Steps took longer than the epoch: the engine asks before it ends the epoch.
    stream.time += timedelta(seconds=2)
    assert runner.step() == []
    runner.run(0.01)
    assert len(runner.data) > handed_on


def test_an_epoch_that_has_had_nothing_gets_a_batch_however_late_the_partition_is_asked(stream: MemoryStream) -> None:
    runner = Runner(stream)
    while len(runner.data) < 9:
        runner.step()
    runner.epoch()
    before = len(runner.data)
    for _ in range(6):
        stream.time += timedelta(seconds=2)
        runner.step()
    assert len(runner.data) > before


def test_an_engine_with_longer_epochs_than_the_settings_say_gets_batches_all_the_while(stream: MemoryStream) -> None:
    runner = Runner(stream, engine_epoch=timedelta(seconds=30))
    while len(runner.data) < 9:
        runner.step()
    stream.time += timedelta(seconds=2)
    assert runner.step() == []
    runner.run(0.5)
    assert len(runner.data) == 200
