"""A flow that is killed, whose disk is lost, goes on from S3 with the right state: real bytewax, real processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import obstore
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main

from core import aws
from core.errors import FencedError, SnapshotError
from core.recovery import RecoverySession, RestoredSnapshot, SnapshotStore, attach_to_bytewax_run, restore, session
from core.recovery.copier import RESUMED_STATE, copy_database
from core.recovery.directory import DATABASE, DirectoryLock, in_memory
from core.recovery.ownership import check_ownership
from core.settings import Settings
from core.stopping import FENCE_SIGNAL

# Two partitions count up to LAST; five keys count what reaches them and write each count to RESULT. Were the source's
# position and the counts not from the same moment, the last counts would be too high or too low.
FLOW = """
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from core.recovery import attach_to_bytewax_run
from core.settings import load_settings
from core.telemetry import configure_logging

LAST = int(os.environ["LAST"])
PACE = timedelta(milliseconds=float(os.environ["PACE_MS"]))
RESULT = Path(os.environ["RESULT"])


class Partition(StatefulSourcePartition):
    def __init__(self, resume):
        self._number = resume or 0

    def next_batch(self):
        if self._number >= LAST:
            if os.environ.get("IDLE"):
                return []
            raise StopIteration
        self._number += 1
        return [self._number]

    def next_awake(self):
        return datetime.now(UTC) + PACE

    def snapshot(self):
        return self._number


class Numbers(FixedPartitionedSource):
    def list_parts(self):
        return ["a", "b"]

    def build_part(self, step_id, for_part, resume_state):
        return Partition(resume_state)


class Lines(StatelessSinkPartition):
    def write_batch(self, items):
        with RESULT.open("a") as file:
            file.writelines(f"{key} {count}\\n" for key, count in items)

    def close(self):
        with RESULT.with_suffix(".closed").open("a") as file:
            file.write("closed\\n")


class Result(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        return Lines()


def flow():
    configure_logging(load_settings())
    flow = Dataflow("counting")
    numbers = op.input("numbers", flow, Numbers())
    keyed = op.key_on("key", numbers, lambda number: str(number % 5))
    step = os.environ.get("COUNT_STEP", "count")
    counts = op.stateful_map(step, keyed, lambda count, _: ((count or 0) + 1, (count or 0) + 1))
    op.output("result", counts, Result())
    attach_to_bytewax_run(load_settings(), flow="counting", graph=flow)
    return flow
"""
# Ports of a cluster's processes are taken by bytewax itself, after this.
LOOPBACK = "127.0.0.1"


class Runner:
    """Runs the counting flow under plain bytewax.run; ends whatever is left at the end of a test."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.directory = settings.recovery_dir
        self.result = folder / "result.txt"
        self.errors = folder / "errors.txt"
        self._running: list[subprocess.Popen[bytes]] = []
        (folder / "counting.py").write_text(FLOW)

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
                [sys.executable, "-m", "bytewax.run", "counting:flow", *recovery, *arguments],
                cwd=self.folder,
                stderr=errors,
                env={
                    **os.environ,
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
    _eventually(lambda: not _copiers(settings.recovery_dir), "a copier still runs")


def _copiers(directory: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if "core.recovery.copier" in words and any(word.startswith(str(directory)) for word in words):
                found.append(int(path.parent.name))
    return found


def _eventually(condition: Callable[[], object], otherwise: str, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(number)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


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
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    process.kill()
    process.wait()
    _eventually(lambda: not _copiers(runner.directory), "the copier outlived the flow")
    _assert_every_snapshot_is_one_cut(runner.settings)
    last = runner.numbers_read() + 50
    shutil.rmtree(runner.directory)
    assert runner.start(*arguments, last=last).wait(60) == 0
    assert runner.counts() == _exactly(last)
    # It did go on: a second run from the start would have written every count once more.
    assert runner.result.read_text().splitlines().count("0 1") == 1
    assert "recovery state restored" in runner.errors.read_text()


def test_a_cluster_of_two_goes_on_as_one_process(runner: Runner) -> None:
    addresses = ";".join(f"{LOOPBACK}:{port}" for port in _free_ports(2))
    cluster = [
        runner.start("-i", number, "-a", addresses, last=ENDLESS, directory=runner.directory / f"of-{number}")
        for number in ("0", "1")
    ]
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    assert list((runner.directory / "of-1").glob("part-*")) == []
    for process in cluster:
        process.kill()
        process.wait()
    _eventually(lambda: not _copiers(runner.directory), "the copier outlived the flow")
    _assert_every_snapshot_is_one_cut(runner.settings)
    last = runner.numbers_read() + 50
    shutil.rmtree(runner.directory)
    assert runner.start(last=last).wait(60) == 0
    assert runner.counts() == _exactly(last)
    assert runner.result.read_text().splitlines().count("0 1") == 1


def test_processes_that_share_a_directory_do_not_wipe_it_under_each_other(runner: Runner) -> None:
    addresses = ";".join(f"{LOOPBACK}:{port}" for port in _free_ports(2))
    first = runner.start("-i", "0", "-a", addresses, last=100)
    _eventually(lambda: (runner.directory / DATABASE).exists(), "nothing was restored")
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
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    process.terminate()
    assert process.wait(30) == 0
    assert runner.result.with_suffix(".closed").exists()
    assert not _copiers(runner.directory)


def test_a_second_execution_stops_the_first(runner: Runner) -> None:
    first = runner.start(last=ENDLESS, IDLE="1")
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    second = runner.start(last=ENDLESS, directory=runner.directory / "second")
    assert first.wait(60) != 0
    assert second.poll() is None
    assert "execution 1 of flow counting was superseded: execution 2 has claimed" in runner.errors.read_text()


def test_an_idle_flow_uploads_nothing_although_bytewax_writes_every_epoch(runner: Runner) -> None:
    process = runner.start(last=20, IDLE="1")
    log = runner.directory / f"{DATABASE}-wal"
    _eventually(lambda: runner.counts() == _exactly(20) if runner.result.exists() else False, "not counted")
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    time.sleep(1.2)
    published, written = runner.manifest_length(), log.stat().st_mtime_ns
    time.sleep(1.6)
    assert log.stat().st_mtime_ns > written
    assert runner.manifest_length() == published
    process.kill()


def test_a_copier_that_dies_is_started_again(runner: Runner) -> None:
    runner.start(last=ENDLESS)
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
    (copier,) = _copiers(runner.directory)
    os.kill(copier, signal.SIGKILL)
    before = runner.manifest_length()
    _eventually(lambda: runner.manifest_length() >= before + 2, "nothing more was published")
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
    _eventually(lambda: runner.manifest_length() >= 1, "no snapshot was published")
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
        [sys.executable, "-m", "bytewax.visualize", "counting:flow"],
        cwd=runner.folder,
        check=True,
        capture_output=True,
        env={
            **os.environ,
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
        [sys.executable, "-m", "bytewax.run", "counting:flow"],
        cwd=runner.folder,
        check=True,
        env={**os.environ, "LAST": "10", "PACE_MS": "1", "RESULT": str(runner.result)},
    )
    assert finished.returncode == 0
    assert SnapshotStore(runner.settings, flow="counting").manifest() is None


# From here on without bytewax.run: what a session does by itself.


def _run_once(directory: Path, *, epoch: int, state: bytes, workers: int = 1) -> None:
    """Write to the database what bytewax writes at the end of an epoch."""
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as database, database:
        database.execute(
            "INSERT OR IGNORE INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, ?, 1)", (workers,)
        )
        database.execute("INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES ('s', 'k', ?, ?)",
                         (epoch, state))  # fmt: skip
        database.execute("INSERT OR REPLACE INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, 0, ?)",
                         (epoch + 1,))  # fmt: skip


def _state(directory: Path) -> list[bytes]:
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as database:
        return [row[0] for row in database.execute("SELECT ser_change FROM snaps ORDER BY snap_epoch")]


def _restored(settings: Settings, directory: Path) -> RestoredSnapshot:
    found = restore(settings, flow="counting", directory=directory)
    assert found is not None
    return found


def test_a_session_publishes_at_its_end_and_the_next_one_restores_it(settings: Settings, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with session(settings, flow="counting", directory=one) as running:
        assert running.restored is not None
        assert running.restored.snapshot is None
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
        _run_once(one, epoch=5, state=b"five")
    assert list(one.glob("part-*")) == []
    restored = _restored(settings, two)
    assert restored.execution == 2
    assert restored.snapshot is not None
    assert restored.snapshot.epoch == 6
    assert _state(two) == [b"five"]


def test_a_session_that_did_nothing_publishes_nothing(settings: Settings, tmp_path: Path) -> None:
    with session(settings, flow="counting", directory=tmp_path / "one"):
        pass
    manifest = SnapshotStore(settings, flow="counting").manifest()
    assert manifest is not None
    assert manifest.snapshots == ()


def test_the_copier_goes_on_after_a_fault(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings.model_copy(update={"snapshot_seconds": 1})
    store, path = SnapshotStore(settings, flow="counting"), "snapshots/counting/manifest.json"
    with session(settings, flow="counting", directory=tmp_path / "one"):
        objects = aws.object_store(settings)
        intact = bytes(obstore.get(objects, path).bytes())
        obstore.put(objects, path, b"damaged")
        _run_once(tmp_path / "one", epoch=5, state=b"five")
        _eventually(lambda: "recovery snapshot failed" in capfd.readouterr().err, "no fault was logged")
        obstore.put(objects, path, intact)
        _eventually(lambda: (found := store.manifest()) and found.newest, "nothing was published")


def test_a_session_that_was_superseded_says_so(settings: Settings, tmp_path: Path) -> None:
    def run() -> None:
        with session(settings, flow="counting", directory=tmp_path / "one"):
            _run_once(tmp_path / "one", epoch=5, state=b"five")
            SnapshotStore(settings, flow="counting").claim()

    # The copier also sends a signal; here it must only be survived.
    before = signal.signal(FENCE_SIGNAL, signal.SIG_IGN)
    try:
        with pytest.raises(FencedError, match="execution 1 of flow counting was superseded"):
            run()
    finally:
        signal.signal(FENCE_SIGNAL, before)


def test_a_session_that_was_superseded_may_not_take_stores_over(settings: Settings, tmp_path: Path) -> None:
    running = RecoverySession(settings, flow="counting", directory=tmp_path / "one")
    check_ownership()
    # The copier also sends a signal; here it must only be survived.
    before = signal.signal(FENCE_SIGNAL, signal.SIG_IGN)
    try:
        SnapshotStore(settings, flow="counting").claim()
        with pytest.raises(FencedError, match="execution 1 of flow counting was superseded"):
            check_ownership()
        with pytest.raises(FencedError):
            running.close()
    finally:
        signal.signal(FENCE_SIGNAL, before)
    check_ownership()


def test_an_error_in_a_session_is_not_hidden_and_the_state_is_kept(settings: Settings, tmp_path: Path) -> None:
    def run() -> None:
        with session(settings, flow="counting", directory=tmp_path / "one"):
            _run_once(tmp_path / "one", epoch=5, state=b"five")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    _restored(settings, tmp_path / "two")
    assert _state(tmp_path / "two") == [b"five"]


def test_other_processes_of_a_cluster_claim_nothing_and_get_an_empty_folder(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "process-1").mkdir()
    (tmp_path / "process-1" / DATABASE).write_bytes(b"of an earlier life")
    with session(settings, flow="counting", directory=tmp_path, process_id=1) as running:
        assert running.restored is None
        assert running.directory == tmp_path / "process-1"
        assert list(running.directory.glob("part-*")) == []
    assert SnapshotStore(settings, flow="counting").manifest() is None


def test_what_lies_in_the_directory_is_replaced_by_what_is_on_s3(settings: Settings, tmp_path: Path) -> None:
    for name in (DATABASE, f"{DATABASE}-wal", "part-1.sqlite3"):
        (tmp_path / name).write_bytes(b"poison")
    _restored(settings, tmp_path)
    assert [path.name for path in tmp_path.glob("part-*")] == [DATABASE]
    assert _state(tmp_path) == []


def test_a_forged_snapshot_never_reaches_the_directory(settings: Settings, tmp_path: Path) -> None:
    with session(settings, flow="counting", directory=tmp_path / "one"):
        _run_once(tmp_path / "one", epoch=5, state=b"five")
    manifest = SnapshotStore(settings, flow="counting").manifest()
    assert manifest is not None
    assert manifest.newest is not None
    path = f"snapshots/counting/{manifest.newest.name}"
    content = bytes(obstore.get(aws.object_store(settings), path).bytes())
    obstore.put(aws.object_store(settings), path, content.replace(b"five", b"evil"))
    with pytest.raises(SnapshotError, match="was not opened"):
        restore(settings, flow="counting", directory=tmp_path / "two")
    assert list((tmp_path / "two").glob("part-*")) == []


def test_a_directory_in_use_is_refused(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.recovery.attach.LOCK_SECONDS", 0.2)
    first = _restored(settings, tmp_path)
    (tmp_path / DATABASE).write_bytes(b"in use")
    with pytest.raises(SnapshotError, match=f"another process still uses the recovery directory {tmp_path}"):
        restore(settings, flow="counting", directory=tmp_path)
    assert (tmp_path / DATABASE).read_bytes() == b"in use"
    first.lock.release()
    second = _restored(settings, tmp_path)
    lock = DirectoryLock(tmp_path)
    assert not lock.acquire(seconds=0)
    second.lock.release()
    assert lock.acquire(seconds=0)
    lock.release()
    assert not lock.acquire(seconds=0)


def test_a_recovery_directory_that_is_no_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for path, message in (("file", "is not a folder"), ("link", "is not a folder"), ("file/x", "can't be created")):
        with pytest.raises(SnapshotError, match=message):
            restore(settings, flow="counting", directory=tmp_path / path)


def test_a_recovery_directory_of_another_user_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if os.geteuid() == 0:  # only root can give a folder away
        os.chown(theirs, 1234, 1234)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 1234)
    owner = theirs.stat().st_uid
    for path in (theirs, theirs / "ours"):
        with pytest.raises(SnapshotError, match=f"belongs to user {owner}, who could place code"):
            restore(settings, flow="counting", directory=path)


def test_memory_is_told_from_disk() -> None:
    assert in_memory(Path("/dev/shm/anything"))
    assert not in_memory(Path("/proc"))


def test_the_resume_epoch_is_that_of_the_slowest_worker(settings: Settings, tmp_path: Path) -> None:
    _restored(settings, tmp_path)
    assert copy_database(tmp_path / DATABASE) is None
    assert copy_database(tmp_path / "part-7.sqlite3") is None
    _run_once(tmp_path, epoch=5, state=b"five", workers=2)
    first = copy_database(tmp_path / DATABASE)
    assert first is not None
    assert first.epoch == 1  # worker 1 has finished no epoch yet
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, 1, 4)")
    second = copy_database(tmp_path / DATABASE)
    assert second is not None
    assert second.epoch == 4


def test_the_state_digest_follows_the_state_and_not_the_epoch(settings: Settings, tmp_path: Path) -> None:
    _restored(settings, tmp_path)
    digests = []
    for epoch, state in ((5, b"five"), (6, b"five"), (7, b"six"), (8, b"five")):
        _run_once(tmp_path, epoch=epoch, state=state)
        copy = copy_database(tmp_path / DATABASE)
        assert copy is not None
        assert copy.epoch == epoch + 1
        digests.append(copy.state_digest)
    assert digests[0] == digests[1] == digests[3] != digests[2]


def test_state_of_an_epoch_that_was_never_completed_does_not_return_with_a_later_resume(tmp_path: Path) -> None:
    letters: list[Any] = ["a", "b", TestingSource.EOF(), "b", "b", "b", TestingSource.ABORT(), "a"]
    counts: list[tuple[str, int]] = []

    def run() -> None:
        flow = Dataflow("counts")
        keyed = op.key_on("key", op.input("input", flow, TestingSource(letters)), lambda letter: letter)
        counted = op.stateful_map("count", keyed, lambda count, _: ((count or 0) + 1,) * 2)
        op.output("output", counted, TestingSink(counts))
        recovery = RecoveryConfig(str(tmp_path))
        run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery)

    init_db_dir(tmp_path, 1)
    run()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        # As a worker leaves it that is killed after its snapshots and before those of another worker.
        database.execute(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change)"
            " SELECT step_id, state_key, worker_frontier, ? FROM snaps, fronts WHERE state_key = 'a'",
            (pickle.dumps(1000),),
        )
    copy = copy_database(tmp_path / DATABASE)
    assert copy is not None
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / DATABASE).write_bytes(copy.content)
    run()
    run()

    assert counts == [("a", 1), ("b", 1), ("b", 2), ("b", 3), ("b", 4), ("a", 2)]


def test_a_damaged_database_is_not_copied(settings: Settings, tmp_path: Path) -> None:
    _restored(settings, tmp_path)
    _run_once(tmp_path, epoch=1, state=bytes(1_000_000))
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.executemany(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES ('s', ?, 1, ?)",
            [(str(number), bytes(1000)) for number in range(1000)],
        )
    content = bytearray((tmp_path / DATABASE).read_bytes())
    content[1_200_000:1_204_096] = b"\xff" * 4096
    (tmp_path / DATABASE).write_bytes(content)
    with pytest.raises((SnapshotError, sqlite3.DatabaseError), match=r"damaged|malformed"):
        copy_database(tmp_path / DATABASE)
