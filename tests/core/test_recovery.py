"""A flow that is killed, whose disk is lost, goes on from S3 with the right state: real bytewax, real processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from core.recovery import SnapshotStore, attach_to_bytewax_run
from core.recovery.copier import RESUMED_STATE
from core.recovery.directory import DATABASE
from core.settings import Settings
from loopback import cluster_addresses
from snapshots import eventually

TESTS = Path(__file__).parents[1]


class Runner:
    """Runs the counting flow under plain bytewax.run; ends whatever is left at the end of a test."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.directory = settings.recovery_dir
        self.result = folder / "result.txt"
        self.errors = folder / "errors.txt"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        *arguments: str,
        last: int,
        pace_ms: float = 4,
        directory: Path | None = None,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        recovery = ["-r", str(directory or self.directory), "-s", "1", "-b", "0"]
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "bytewax.run", "counting_flow:flow", *recovery, *arguments],
                cwd=self.folder,
                stderr=errors,
                env={
                    **os.environ,
                    "PYTHONPATH": str(TESTS),
                    "PYTHONWARNINGS": "error",
                    "PKM_SNAPSHOT_SECONDS": "1",
                    "PKM_LOG_LEVEL": "debug",
                    "LAST": str(last),
                    "PACE_MS": str(pace_ms),
                    "RESULT": str(self.result),
                    **environment,
                },
            )
        self._running.append(process)
        return process

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for line in self.result.read_text().splitlines():
            key, count = line.split()
            counts[key] = max(int(count), counts.get(key, 0))
        return counts

    def numbers_read(self) -> int:
        """Bound what either partition has given: both go at one pace, and every fifth number has the same key."""
        return 3 * max(self.counts().values())

    def manifest_length(self) -> int:
        manifest = SnapshotStore(self.settings, flow="counting").manifest()
        return len(manifest.snapshots) if manifest else 0

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture
def runner(tmp_path: Path, settings: Settings) -> Iterator[Runner]:
    runner = Runner(tmp_path, settings)
    yield runner
    runner.end()
    # The copier outlives a killed flow for a moment.
    eventually(lambda: not _copiers(settings.recovery_dir), "a copier still runs")


def _copiers(directory: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if "core.recovery.copier" in words and any(word.startswith(str(directory)) for word in words):
                found.append(int(path.parent.name))
    return found


ENDLESS = 1_000_000


def _exactly(last: int) -> dict[str, int]:
    return {str(key): 2 * sum(1 for number in range(1, last + 1) if number % 5 == key) for key in range(5)}


def _assert_every_snapshot_is_one_cut(settings: Settings) -> None:
    """Compare the sources' positions with the counts, in the state that bytewax would resume from each snapshot."""
    store = SnapshotStore(settings, flow="counting")
    manifest = store.manifest()
    assert manifest is not None
    assert manifest.snapshots
    for snapshot in manifest.snapshots:
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(_without_log(store.content(snapshot)))
            state = {
                (step.split(".")[1], key): pickle.loads(change)
                for step, key, _, change in database.execute(RESUMED_STATE, (snapshot.epoch,))
            }
        read = [state["numbers", partition] for partition in ("a", "b")]
        for key in range(5):
            expected = sum(1 for end in read for number in range(1, end + 1) if number % 5 == key)
            assert state["count", str(key)] == expected, snapshot
        assert min(read) > 0


def _without_log(content: bytes) -> bytes:
    # Bytes 18 and 19 say that a write-ahead log belongs to the file; SQLite can't have one in memory.
    return content[:18] + b"\x01\x01" + content[20:]


@pytest.mark.parametrize("arguments", [(), ("-w", "2")], ids=["1 worker", "2 workers"])
def test_a_flow_killed_in_the_middle_goes_on_from_s3_on_an_empty_disk(
    runner: Runner, arguments: Sequence[str]
) -> None:
    process = runner.start(*arguments, last=ENDLESS)
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    process.kill()
    process.wait()
    eventually(lambda: not _copiers(runner.directory), "the copier outlived the flow")
    _assert_every_snapshot_is_one_cut(runner.settings)
    last = runner.numbers_read() + 50
    shutil.rmtree(runner.directory)
    assert runner.start(*arguments, last=last).wait(60) == 0
    assert runner.counts() == _exactly(last)
    # It did go on: a second run from the start would have written every count once more.
    assert runner.result.read_text().splitlines().count("0 1") == 1
    assert "recovery state restored" in runner.errors.read_text()


def test_a_cluster_of_two_goes_on_as_one_process(runner: Runner) -> None:
    addresses = cluster_addresses(2)
    cluster = [
        runner.start("-i", number, "-a", addresses, last=ENDLESS, directory=runner.directory / f"of-{number}")
        for number in ("0", "1")
    ]
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    assert list((runner.directory / "of-1").glob("part-*")) == []
    for process in cluster:
        process.kill()
        process.wait()
    eventually(lambda: not _copiers(runner.directory), "the copier outlived the flow")
    _assert_every_snapshot_is_one_cut(runner.settings)
    last = runner.numbers_read() + 50
    shutil.rmtree(runner.directory)
    assert runner.start(last=last).wait(60) == 0
    assert runner.counts() == _exactly(last)
    assert runner.result.read_text().splitlines().count("0 1") == 1


def test_processes_that_share_a_directory_do_not_wipe_it_under_each_other(runner: Runner) -> None:
    addresses = cluster_addresses(2)
    first = runner.start("-i", "0", "-a", addresses, last=100)
    eventually(lambda: (runner.directory / DATABASE).exists(), "nothing was restored")
    second = runner.start("-i", "1", "-a", addresses, last=100)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert runner.counts() == _exactly(100)
    assert runner.manifest_length() >= 1


def test_after_a_clean_end_nothing_is_read_twice(runner: Runner) -> None:
    assert runner.start(last=100).wait(60) == 0
    assert runner.counts() == _exactly(100)
    shutil.rmtree(runner.directory)
    written = runner.result.read_text()
    assert runner.start(last=101).wait(60) == 0
    assert runner.result.read_text().removeprefix(written).splitlines() == ["1 41", "1 42"]


def test_several_partitions_in_the_directory_are_replaced_by_one(runner: Runner) -> None:
    runner.directory.mkdir()
    subprocess.run([sys.executable, "-m", "bytewax.recovery", str(runner.directory), "3"], check=True)
    assert runner.start(last=10).wait(60) == 0
    assert runner.counts() == _exactly(10)
    assert [path.name for path in runner.directory.glob("part-*.sqlite3")] == [DATABASE]


def test_sigterm_closes_the_sinks_and_the_last_copy_is_published(runner: Runner) -> None:
    process = runner.start(last=ENDLESS)
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    process.terminate()
    assert process.wait(30) == 0
    assert runner.result.with_suffix(".closed").exists()
    assert not _copiers(runner.directory)


def test_a_second_execution_stops_the_first(runner: Runner) -> None:
    first = runner.start(last=ENDLESS, IDLE="1")
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    second = runner.start(last=ENDLESS, directory=runner.directory / "second")
    assert first.wait(60) != 0
    assert second.poll() is None
    assert "execution 1 of flow counting was superseded: execution 2 has claimed" in runner.errors.read_text()


def test_an_idle_flow_uploads_nothing_although_bytewax_writes_every_epoch(runner: Runner) -> None:
    process = runner.start(last=20, IDLE="1")
    log = runner.directory / f"{DATABASE}-wal"
    eventually(lambda: runner.counts() == _exactly(20) if runner.result.exists() else False, "not counted")
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    time.sleep(1.2)
    published, written = runner.manifest_length(), log.stat().st_mtime_ns
    time.sleep(1.6)
    assert log.stat().st_mtime_ns > written
    assert runner.manifest_length() == published
    process.kill()


def test_a_copier_that_dies_is_started_again(runner: Runner) -> None:
    runner.start(last=ENDLESS)
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    (copier,) = _copiers(runner.directory)
    os.kill(copier, signal.SIGKILL)
    before = runner.manifest_length()
    eventually(lambda: runner.manifest_length() >= before + 2, "nothing more was published")
    assert _copiers(runner.directory) != [copier]


def test_a_flow_with_another_step_is_refused_until_that_is_accepted(runner: Runner) -> None:
    assert runner.start(last=10).wait(60) == 0
    assert runner.start(last=20, COUNT_STEP="sum").wait(60) != 0
    errors = runner.errors.read_text()
    assert 'the snapshot has "counting.count.stateful_flat_map.stateful.stateful_batch"' in errors
    assert 'this flow has "counting.sum.stateful_flat_map.stateful.stateful_batch"' in errors
    assert runner.start(last=20, COUNT_STEP="sum", PKM_ACCEPT_CHANGED_STEPS="1").wait(60) == 0
    # The source went on, and the new step began with nothing: it counted the second half only.
    assert runner.result.read_text().splitlines().count("0 4") == 2
    assert max(runner.counts().values()) == 4


@pytest.mark.thorough
def test_a_flow_is_stopped_before_memory_is_full_and_goes_on_when_there_is_room(runner: Runner) -> None:
    limit = {"PKM_MEMORY_DIR_BYTES": str(16 * 1024**2)}
    process = runner.start(last=ENDLESS, **limit)
    eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    ballast = runner.directory / "ballast"
    ballast.write_bytes(bytes(12 * 1024**2))
    assert process.wait(30) == 1
    errors = runner.errors.read_text()
    assert "memory is nearly full; the flow is stopped" in errors
    assert f"{runner.directory} and" in errors
    assert "PKM_MEMORY_DIR_BYTES is 16.0 MiB" in errors
    assert runner.result.with_suffix(".closed").exists()
    # It does not even start again before there is room.
    assert runner.start(last=ENDLESS, **limit).wait(30) == 1
    ballast.unlink()
    last = runner.numbers_read() + 50
    assert runner.start(last=last, **limit).wait(60) == 0
    assert runner.counts() == _exactly(last)


def test_drawing_the_flow_attaches_nothing(runner: Runner) -> None:
    drawn = subprocess.run(
        [sys.executable, "-m", "bytewax.visualize", "counting_flow:flow"],
        cwd=runner.folder,
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "BYTEWAX_RECOVERY_DIRECTORY": str(runner.directory),
            "LAST": "1",
            "PACE_MS": "1",
            "RESULT": str(runner.result),
        },
    )
    assert b"counting" in drawn.stdout
    assert not runner.directory.exists()
    assert SnapshotStore(runner.settings, flow="counting").manifest() is None


def test_a_test_that_builds_a_flow_attaches_nothing(settings: Settings) -> None:
    attach_to_bytewax_run(settings, flow="counting")
    assert SnapshotStore(settings, flow="counting").manifest() is None


def test_without_a_recovery_directory_nothing_is_attached(runner: Runner) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "counting_flow:flow"],
        cwd=runner.folder,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "LAST": "10",
            "PACE_MS": "1",
            "RESULT": str(runner.result),
        },
    )
    assert finished.returncode == 0
    assert SnapshotStore(runner.settings, flow="counting").manifest() is None
