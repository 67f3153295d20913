"""A process that is told to stop ends in time, whatever its steps do just then: real bytewax, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROMISED_SECONDS = 8.0

# Two partitions feed a step that, from the third number on, does what STEP says. Files tell what happened.
FLOW = """
import os, signal, subprocess, sys, time
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from core import stopping
from core.recovery import attach_to_bytewax_run
from core.settings import load_settings
from core.telemetry import configure_logging

OUT = Path(os.environ["OUT"])


class Partition(StatefulSourcePartition):
    def __init__(self):
        self.number = 0

    def next_batch(self):
        if stopping.requested():
            (OUT / "ended").touch()
            raise StopIteration
        time.sleep(0.02)
        self.number += 1
        return [self.number]

    def snapshot(self):
        return self.number


class Source(FixedPartitionedSource):
    def list_parts(self):
        return ["a", "b"]

    def build_part(self, *_):
        return Partition()


class Sink(StatelessSinkPartition):
    def write_batch(self, items):
        pass

    def close(self):
        with (OUT / "closed").open("a") as file:
            file.write("closed ")
        if os.environ["STEP"] == "fail":
            raise RuntimeError("the table is gone")


class Output(DynamicSink):
    def build(self, *_):
        return Sink()


def step(number):
    if number == 3:
        (OUT / f"busy-{time.monotonic_ns()}").touch()
        if os.environ["STEP"] == "long":
            for _ in range(600):
                time.sleep(0.1)
                stopping.interrupt_if_overdue()
        if os.environ["STEP"] == "stuck":
            time.sleep(60)
        if os.environ["STEP"] == "fork" and not (OUT / "forked").exists():
            (OUT / "forked").touch()
            child = os.fork()
            if child == 0:
                time.sleep(60)
            time.sleep(0.3)
            os.kill(child, signal.SIGTERM)
            (OUT / f"child-{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}").touch()
    return number


def flow():
    configure_logging(load_settings())
    attach_to_bytewax_run(load_settings(), flow="stopping")
    graph = Dataflow("stopping")
    op.output("out", op.map("step", op.input("in", graph, Source()), step), Output())
    return graph
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "stopping_flow.py").write_text(FLOW)

    def start_one(step: str, *arguments: str) -> subprocess.Popen[str]:
        out = tmp_path / f"{step}-{len(started)}"
        out.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "bytewax.run", "stopping_flow:flow", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OUT": str(out), "STEP": step},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        deadline = time.monotonic() + 60
        while not list(out.glob("busy-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def stopped(process: subprocess.Popen[str], *signals: int) -> tuple[int, float, str]:
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    printed, _ = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - began, printed


def closed(tmp_path: Path, name: str) -> int:
    path = tmp_path / name / "closed"
    return len(path.read_text().split()) if path.exists() else 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_idle_steps_end_at_once(start: Start, tmp_path: Path, workers: str) -> None:
    code, seconds, printed = stopped(start("none", "-w", workers), signal.SIGTERM, signal.SIGTERM)
    assert (code, printed) == (0, "")
    assert seconds < 3
    assert closed(tmp_path, "none-0") == int(workers)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_ctrl_c_ends_the_input_and_interrupts_nothing(start: Start, tmp_path: Path, workers: str) -> None:
    code, _, printed = stopped(start("none", "-w", workers), signal.SIGINT)
    assert (code, printed) == (0, "")
    assert (tmp_path / "none-0" / "ended").exists()
    assert closed(tmp_path, "none-0") == int(workers)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_step_that_asks_is_interrupted_and_the_sinks_are_closed(start: Start, tmp_path: Path, workers: str) -> None:
    code, seconds, printed = stopped(start("long", "-w", workers), signal.SIGTERM)
    assert code == 0, printed
    assert 4 <= seconds < 6
    assert closed(tmp_path, "long-0") == int(workers)
    assert "stopping takes long" in printed
    assert "Traceback" not in printed


def test_a_step_that_is_stuck_does_not_keep_the_process(start: Start) -> None:
    code, seconds, printed = stopped(start("stuck", "-w", "2"), signal.SIGTERM)
    assert code == 0, printed
    assert seconds < PROMISED_SECONDS
    assert "Traceback" not in printed


def test_a_second_ctrl_c_does_not_wait(start: Start) -> None:
    code, seconds, _ = stopped(start("stuck"), signal.SIGINT, signal.SIGINT)
    assert code == 0
    assert seconds < 3


def test_a_sink_that_can_not_be_closed_is_told_by_the_exit_code(start: Start) -> None:
    code, seconds, printed = stopped(start("fail"), signal.SIGTERM)
    assert code == 1
    assert seconds < PROMISED_SECONDS
    assert "the table is gone" in printed


def test_a_signal_to_a_forked_child_does_not_stop_the_flow(start: Start, tmp_path: Path) -> None:
    process = start("fork", "-w", "2")
    deadline = time.monotonic() + 30
    while not list((tmp_path / "fork-0").glob("child-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    assert process.poll() is None
    # The child had the usual meaning of the signal, and nobody else heard of it.
    assert [path.name for path in (tmp_path / "fork-0").glob("child-*")] == [f"child--{int(signal.SIGTERM)}"]
    assert stopped(process, signal.SIGTERM)[0] == 0
