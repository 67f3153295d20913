"""Notices reach the process that has the partition they are for."""

from __future__ import annotations

import pickle
import threading
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import StatefulSinkPartition
from bytewax.testing import cluster_main

from sources.kinesis_notices import Board, Notice, NoticeSink
from sources.kinesis_shards import partition_names


class Teller(StatefulSourcePartition[Notice, None]):
    """Tells each partition once, and notes on which worker it runs itself."""

    def __init__(self, number: int, partitions: int, places: dict[int, int]) -> None:
        self._notices = [
            Notice(other, number, f"shard of {number}") for other in range(partitions) if other != number
        ]
        places[number] = threading.get_ident()

    def next_batch(self) -> list[Notice]:
        if not self._notices:
            raise StopIteration
        return [self._notices.pop()]

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(milliseconds=1)

    def snapshot(self) -> None:
        return None


class Tellers(FixedPartitionedSource[Notice, None]):
    def __init__(self, partitions: int, places: dict[int, int]) -> None:
        self._names = partition_names(partitions)
        self._places = places

    def list_parts(self) -> list[str]:
        return self._names

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> Teller:
        return Teller(self._names.index(for_part), len(self._names), self._places)


class PlacedSink(NoticeSink):
    """Notes on which worker each partition's notices arrive."""

    def __init__(self, board: Board, partitions: int, places: dict[int, int]) -> None:
        super().__init__(board, partitions)
        self._all = partition_names(partitions)
        self._arrivals = places

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> StatefulSinkPartition[Notice, None]:  # type: ignore[override]
        self._arrivals[self._all.index(for_part)] = threading.get_ident()
        return super().build_part(step_id, for_part, resume_state)


@pytest.mark.parametrize(("workers", "partitions"), [(1, 4), (2, 4), (3, 4), (4, 3), (3, 17)])
def test_a_sinks_partition_is_on_the_worker_of_the_sources_partition_of_that_name(
    workers: int, partitions: int
) -> None:
    """Nothing in Bytewax's documentation promises it; without it a notice would end in another process."""
    board = Board()
    asked: dict[int, int] = {}
    arrived: dict[int, int] = {}
    names = partition_names(partitions)
    flow = Dataflow("notices")
    notices = op.input("in", flow, Tellers(partitions, asked))
    keyed = op.map("to", notices, lambda notice: (names[notice.receiver], notice))
    op.output("out", keyed, PlacedSink(board, partitions, arrived))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)

    assert asked == arrived
    assert len(set(asked.values())) == min(workers, partitions)
    for number in range(partitions):
        others = {f"shard of {other}" for other in range(partitions) if other != number}
        assert board.drained(number) == others


def test_what_an_earlier_run_of_the_flow_was_told_is_void() -> None:
    board = Board()
    board.begin(0)
    board.begin(1)
    board.post(Notice(0, 1, "shard"))
    board.post(Notice(0, 1))
    assert (board.drained(0), board.ended(0)) == ({"shard"}, {1})
    board.begin(1)
    assert (board.drained(0), board.ended(0)) == (set(), set())
    board.begin(0)
    board.post(Notice(0, 1, "shard"))
    assert board.drained(0) == {"shard"}


def test_the_board_knows_whether_one_worker_reads_all_partitions() -> None:
    board = Board()
    board.begin(0)
    assert not board.on_one_worker(2)
    board.begin(1)
    assert board.on_one_worker(2)
    other = threading.Thread(target=board.begin, args=(2,))
    other.start()
    other.join()
    assert not board.on_one_worker(3)


def test_a_notice_travels_between_processes() -> None:
    notice = Notice(3, 1, "shard")
    assert pickle.loads(pickle.dumps(notice)) == notice
