"""No document can stop, stall or outlive the process that parsers run in."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import ResourceError
from operators.formats import process
from operators.formats.detect import Format
from operators.formats.extracted import Extracted, Refused
from operators.formats.process import Parsers

SECONDS = 1.0
ROOT = Path(__file__).parents[3]


def text_of(parsers: Parsers, text: str) -> str:
    (found,) = parsers.read([(text, Format.PLAIN, False)])
    assert isinstance(found, Extracted), found
    return found.text


def child_ids() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def test_a_document_that_ends_its_process_costs_only_itself(
    parsers: Parsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child looks up the function by name: os.abort stands for a parser that crashes in C.
    assert text_of(parsers, "good") == "good"
    tasks: list[Any] = [("one", Format.PLAIN, False), ("two", Format.PLAIN, False), ("three", Format.PLAIN, False)]
    schedule = parsers._schedule

    def crash_on_two(task: Any) -> Any:
        if task[0] == "two":
            schedule(("warm", Format.PLAIN, False))
            assert parsers._pool is not None
            return parsers._pool.schedule(os.abort, timeout=SECONDS)
        return schedule(task)

    monkeypatch.setattr(parsers, "_schedule", crash_on_two)
    one, two, three = parsers.read(tasks)
    assert isinstance(one, Extracted)
    assert isinstance(three, Extracted)
    assert (one.text, three.text) == ("one", "three")
    assert isinstance(two, Refused)
    assert two.error == "ParserCrashed"


def test_a_parser_that_waits_without_computing_is_stopped_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Parsers(seconds=0.1)
    assert len(stuck.read([("warm", Format.PLAIN, False)])) == 1
    schedule = stuck._schedule

    def wait(task: Any) -> Any:
        assert stuck._pool is not None
        return stuck._pool.schedule(time.sleep, args=(600,), timeout=0.5) if task[0] == "wait" else schedule(task)

    monkeypatch.setattr(stuck, "_schedule", wait)
    waited, fine = stuck.read([("wait", Format.PLAIN, False), ("fine", Format.PLAIN, False)])
    stuck.close()
    assert isinstance(waited, Refused)
    assert waited.error == "TimedOut"
    assert isinstance(fine, Extracted)


def test_a_process_that_vanishes_between_documents_is_started_again(parsers: Parsers) -> None:
    assert text_of(parsers, "before") == "before"
    for child in child_ids():
        os.kill(child, signal.SIGKILL)
    assert text_of(parsers, "after") == "after"
    for child in child_ids():
        os.kill(child, signal.SIGKILL)
    time.sleep(0.5)
    assert text_of(parsers, "later") == "later"


def test_an_interrupt_from_the_terminal_leaves_the_process_to_its_parent(parsers: Parsers) -> None:
    assert text_of(parsers, "before") == "before"
    children = child_ids()
    for child in children:
        os.kill(child, signal.SIGINT)
    assert text_of(parsers, "after") == "after"
    assert child_ids() == children


def test_a_document_that_takes_too_much_memory_is_a_failure() -> None:
    small = Parsers(seconds=20, memory_bytes=600 * 1024**2)
    try:
        (refused,) = small.read([("[" + "[1]," * 9_000_000 + "1]", Format.JSON, True)])
        assert isinstance(refused, Refused)
        assert refused.error == "OutOfMemory"
        (fine,) = small.read([("fine", Format.PLAIN, True)])
        assert isinstance(fine, Extracted)
    finally:
        small.close()


def test_a_process_that_can_not_start_stops_the_flow_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 5.0)
    starved = Parsers(seconds=1, memory_bytes=16 * 1024**2)
    started = time.monotonic()
    try:
        with pytest.raises(ResourceError, match=r"16 MiB of\s+address space"):
            # More than the pipe to the process holds.
            starved.read([("text" * 500, Format.PLAIN, True)] * 300)
    finally:
        starved.close()
    # Not each document waits until it is clear that there is no process.
    assert time.monotonic() - started < 60


HOLDER = """
import multiprocessing, os, sys, time
from operators.formats.detect import Format
from operators.formats.process import Parsers

if __name__ == "__main__":
    parsers = Parsers(seconds=600)
    parsers.read([("warm", Format.PLAIN, True)])
    (child,) = multiprocessing.active_children()
    maps = open(f"/proc/{child.pid}/maps").read()
    print(child.pid, "torch" in maps or "bytewax" in maps, flush=True)
    if sys.argv[1] == "busy":
        parsers.read([("[" * 2_000_000, Format.MARKDOWN, True)])
    time.sleep(600)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_process_is_small_and_ends_with_its_parent_even_by_sigkill(tmp_path: Path, state: str) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "holder.py"), state],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child, heavy = parent.stdout.readline().split()
        assert heavy == "False"
        assert Path(f"/proc/{child}").exists()
        time.sleep(0.3 if state == "busy" else 0)
        parent.kill()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process_id: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        # A zombie that nobody has collected has ended, too.
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
