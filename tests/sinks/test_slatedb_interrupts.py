"""An interrupt of the main thread, be it before a commit to the metadata store or while it waits for one."""

from __future__ import annotations

import asyncio
import queue
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from core import async_thread
from core.deferred import settled
from core.settings import Settings
from metadata_notes import note
from sinks import slatedb


@pytest.fixture
def store(settings: Settings) -> Settings:
    slatedb.create_store(settings)
    return settings


def test_an_interrupt_during_a_commit_is_neither_lost_nor_hangs(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = slatedb.MetadataSink(store).build_part("metadata.write", "part-00", None)
    interrupted = 0

    class AlarmedQueue(queue.SimpleQueue[Any]):
        """What the main thread waits on: the alarm is set when it begins to.

        Not before: it takes locks of Python's own, which an interrupt can leave locked.
        """

        def get(self, *arguments: Any, **options: Any) -> Any:
            signal.setitimer(signal.ITIMER_REAL, number * 1e-4)
            return super().get(*arguments, **options)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(async_thread, "queue", SimpleNamespace(SimpleQueue=AlarmedQueue))
            for number in range(1, 61):
                part.write_batch([note(f"n{number}", number)])
                state = part.snapshot()
                try:
                    settled(state)
                    # Wait for the alarm: an interrupt that was swallowed above would never come.
                    time.sleep(5)
                    pytest.fail("the interrupt was lost")
                except KeyboardInterrupt:
                    interrupted += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 60
    part.snapshot()
    part.close()
    assert slatedb.count_notes(store) == 60


def test_an_interrupt_before_a_commit_leaves_the_notes_to_the_next_epoch(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = slatedb.MetadataPart(store, "part-00")
    part.write_batch([note("n1", 1)])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            part.snapshot()
    part.snapshot()
    part.close()
    assert slatedb.count_notes(store) == 1
