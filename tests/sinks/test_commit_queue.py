"""Epochs are written and committed beside the stream, in order, until the first that fails."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from core.errors import CommitError, UnreachableError
from sinks import commit_queue
from sinks.commit_queue import CommitQueue


class Rows:
    """What a write holds on to."""


def writing(number: int) -> Callable[[], int]:
    return lambda: number


def results(waiting: CommitQueue[int]) -> list[int]:
    return [write.result() for write in waiting.unconfirmed()]


def test_the_queue_keeps_order_and_stops_at_the_first_commit_that_fails() -> None:
    made: list[int] = []
    gate = threading.Event()

    def commit(number: int) -> None:
        gate.wait(10)
        if number == 3:
            raise CommitError("no")
        made.append(number)

    waiting = CommitQueue(commit, name="test")
    for number in range(1, 6):
        waiting.submit(writing(number))
    assert results(waiting) == [1, 2, 3, 4, 5]
    gate.set()
    with pytest.raises(CommitError, match="no"):
        waiting.wait()
    assert made == [1, 2]
    assert results(waiting) == [3, 4, 5]
    with pytest.raises(CommitError):
        waiting.submit(writing(1))


def test_a_write_waits_for_no_commit_and_the_caller_for_no_write() -> None:
    written, open_write, open_commit = threading.Event(), threading.Event(), threading.Event()

    def write() -> int:
        open_write.wait(10)
        written.set()
        return 2

    waiting: CommitQueue[int] = CommitQueue(lambda _: open_commit.wait(10) and None, name="test")
    waiting.submit(writing(1))
    waiting.submit(write)
    before = waiting.unconfirmed()
    waiting.submit(writing(3))
    assert not written.is_set()
    open_write.set()
    assert [write.result() for write in before] == [1, 2], "what came later is not a part of it"
    assert not open_commit.is_set()
    open_commit.set()
    waiting.wait()
    assert results(waiting) == []


def test_a_commit_comes_after_what_the_stream_waits_for_unless_somebody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit_queue, "HEAD_START_SECONDS", 60.0)
    made: list[int] = []
    waiting = CommitQueue(made.append, name="test")
    assert waiting.submit(writing(1)).result() == 1
    time.sleep(0.3)
    assert made == []
    began = time.monotonic()
    waiting.wait()
    assert made == [1]
    assert time.monotonic() - began < 30


def test_a_write_that_fails_is_told_to_the_state_and_to_every_later_call() -> None:
    made: list[int] = []

    def fail() -> int:
        raise UnreachableError("no bucket")

    waiting = CommitQueue(made.append, name="test")
    waiting.submit(writing(1))
    waiting.submit(fail)
    waiting.submit(writing(3))
    with pytest.raises(UnreachableError, match="no bucket"):
        results(waiting)
    for call in (waiting.wait, waiting.raise_failure, lambda: waiting.submit(writing(4))):
        with pytest.raises(UnreachableError, match="no bucket"):
            call()
    assert made == [1], "nothing is committed after what is missing"


def test_rows_that_are_written_are_not_kept() -> None:
    def epoch() -> tuple[Callable[[], int], weakref.ref[Rows]]:
        rows = Rows()
        return (lambda: len(str(rows))), weakref.ref(rows)

    waiting: CommitQueue[int] = CommitQueue(lambda _: None, name="test")
    write, rows = epoch()
    waiting.submit(write)
    del write
    waiting.wait()
    waiting.submit(writing(2))
    waiting.wait()
    gc.collect()
    assert rows() is None
