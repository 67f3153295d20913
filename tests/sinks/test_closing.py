"""Sinks end side by side; a flow that fails gives the engine one error, however many sinks would have one."""

from __future__ import annotations

import threading

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.outputs import FixedPartitionedSink
from bytewax.testing import TestingSource, run_main

from core.errors import CommitError, UnreachableError
from core.first_error import begin, first_error, note, noted
from sinks.closing import CarefulPartition, ClosablePartition


class Part(ClosablePartition[int, None]):
    """Fails where it is told to; remembers whether it was closed."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.closed = False

    def write_batch(self, values: list[int]) -> None:
        self._fail("write_batch")

    def snapshot(self) -> None:
        self._fail("snapshot")

    def close(self) -> None:
        self.closed = True
        self._fail("close")

    def _fail(self, where: str) -> None:
        if where in self.failing:
            raise CommitError(f"{where} failed")


class Sink(FixedPartitionedSink[int, None]):
    """Two partitions."""

    def __init__(self, parts: dict[str, Part]) -> None:
        self.parts = parts

    def list_parts(self) -> list[str]:
        return list(self.parts)

    def part_fn(self, item_key: str) -> int:
        return int(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> CarefulPartition[int, None]:
        return CarefulPartition(self.parts[for_part])


def run(*parts: Part) -> None:
    flow = Dataflow("flow")
    items = op.input("input", flow, TestingSource([("0", 1), ("1", 1)], batch_size=2))
    op.output("output", items, Sink(dict(zip("ab", parts, strict=True))))
    run_main(flow)


@pytest.mark.parametrize("where", ["write_batch", "snapshot", "close"])
def test_the_error_of_one_partition_is_not_followed_by_that_of_another_on_closing(where: str) -> None:
    # Without care the second one makes the engine abort this very process.
    with pytest.raises((CommitError, BytewaxRuntimeError)):
        run(Part(where, "close"), Part("close"))
    assert str(first_error()) == f"{where} failed"


def test_without_an_error_all_are_closed() -> None:
    parts = (Part(), Part())
    run(*parts)
    assert all(part.closed for part in parts)
    assert first_error() is None


class SlowPart(Part):
    """Ends on a thread, and only when all others have begun to."""

    def __init__(self, together: threading.Barrier, *failing: str) -> None:
        super().__init__(*failing)
        self._together = together

    def begin_close(self) -> None:
        self._end = threading.Thread(target=self._together.wait, args=(10,))
        self._end.start()

    def close(self) -> None:
        self._end.join()
        super().close()


def test_partitions_end_side_by_side_and_the_flow_ends_after_them() -> None:
    together = threading.Barrier(2)
    parts = (SlowPart(together), SlowPart(together))
    run(*parts)
    assert not together.broken
    assert all(part.closed for part in parts)


def test_an_end_that_fails_beside_others_fails_the_flow() -> None:
    together = threading.Barrier(2)
    with pytest.raises((CommitError, BytewaxRuntimeError)):
        run(SlowPart(together, "close"), SlowPart(together))
    assert str(first_error()) == "close failed"


def test_a_flow_does_not_wait_for_what_an_interrupted_one_left_open() -> None:
    left = CarefulPartition(Part())
    closing = CarefulPartition(Part())
    closing.close()
    del left, closing
    parts = (Part(), Part())
    run(*parts)
    assert all(part.closed for part in parts)


def test_what_closing_one_raises_keeps_no_other_from_its_end() -> None:
    class Broken(Part):
        def close(self) -> None:
            raise ZeroDivisionError

    parts = (Broken(), Part(), Part())
    careful = [CarefulPartition(part) for part in parts]
    careful[0].close()
    careful[1].close()
    with pytest.raises(ZeroDivisionError):
        careful[2].close()
    assert [part.closed for part in parts] == [False, True, True]


def test_a_partition_that_is_built_late_is_waited_for_and_forgets_no_error() -> None:
    parts = (Part(), Part(), Part("close"))
    early, other = CarefulPartition(parts[0]), CarefulPartition(parts[1])
    early.close()
    assert not parts[0].closed, "another one is open"
    late = CarefulPartition(parts[2])
    other.close()
    with pytest.raises(CommitError):
        late.close()
    assert all(part.closed for part in parts)
    open_one = CarefulPartition(Part("write_batch"))
    with pytest.raises(CommitError):
        open_one.write_batch([1])
    CarefulPartition(Part())
    assert str(first_error()) == "write_batch failed"


def test_the_first_error_stays() -> None:
    begin()
    with pytest.raises(UnreachableError), noted():
        raise UnreachableError("first")
    note(CommitError("second"))
    assert isinstance(first_error(), UnreachableError)
    assert str(first_error()) == "first"
    begin()
    assert first_error() is None
