"""Epochs are stored and committed beside the stream, in order, until the first that fails."""

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
    """What storing holds on to."""


def at_once() -> None:
    """Store nothing."""


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
        waiting.submit(number, at_once)
    assert waiting.unconfirmed() == (1, 2, 3, 4, 5)
    gate.set()
    with pytest.raises(CommitError, match="no"):
        waiting.wait()
    assert made == [1, 2]
    assert waiting.unconfirmed() == (3, 4, 5)
    with pytest.raises(CommitError):
        waiting.submit(6, at_once)


def test_storing_waits_for_no_commit_and_the_caller_for_nothing() -> None:
    stored, open_store, open_commit = threading.Event(), threading.Event(), threading.Event()

    def store() -> None:
        open_store.wait(10)
        stored.set()

    waiting: CommitQueue[int] = CommitQueue(lambda _: open_commit.wait(10) and None, name="test")
    assert waiting.stored.done(), "nothing is under way"
    waiting.submit(1, at_once)
    waiting.submit(2, store)
    two = waiting.stored
    waiting.submit(3, at_once)
    assert waiting.unconfirmed() == (1, 2, 3)
    assert not stored.is_set()
    open_store.set()
    two.result()
    assert stored.is_set()
    waiting.stored.result()
    assert not open_commit.is_set()
    open_commit.set()
    waiting.wait()
    assert waiting.unconfirmed() == ()


def test_a_commit_comes_after_what_the_stream_waits_for_unless_somebody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit_queue, "HEAD_START_SECONDS", 60.0)
    made: list[int] = []
    waiting = CommitQueue(made.append, name="test")
    waiting.submit(1, at_once)
    waiting.stored.result()
    time.sleep(0.3)
    assert made == []
    began = time.monotonic()
    waiting.wait()
    assert made == [1]
    waiting.hurry()
    waiting.submit(2, at_once)
    while made != [1, 2]:
        assert time.monotonic() - began < 30
        time.sleep(0.01)


def test_what_can_not_be_stored_is_told_to_the_state_and_to_every_later_call() -> None:
    made: list[int] = []
    stored: list[int] = []
    held = threading.Event()

    def fail() -> None:
        held.wait(10)
        raise UnreachableError("no bucket")

    waiting = CommitQueue(made.append, name="test")
    waiting.submit(1, at_once)
    waiting.submit(2, fail)
    waiting.submit(3, lambda: stored.append(3))
    held.set()
    with pytest.raises(UnreachableError, match="no bucket"):
        waiting.stored.result()
    for call in (waiting.wait, waiting.raise_failure, lambda: waiting.submit(4, at_once)):
        with pytest.raises(UnreachableError, match="no bucket"):
            call()
    assert (made, stored) == ([1], []), "nothing is stored or committed after what is missing"


def test_rows_that_are_stored_are_not_kept() -> None:
    def epoch() -> tuple[Callable[[], int], weakref.ref[Rows]]:
        rows = Rows()
        return (lambda: len(str(rows))), weakref.ref(rows)

    waiting: CommitQueue[int] = CommitQueue(lambda _: None, name="test")
    store, rows = epoch()
    waiting.submit(1, store)
    del store
    waiting.wait()
    waiting.submit(2, at_once)
    waiting.wait()
    gc.collect()
    assert rows() is None
