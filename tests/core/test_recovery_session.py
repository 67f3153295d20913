"""What a session does by itself, without bytewax.run: restores, publishes, and refuses what does not fit."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sqlite3
import stat
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
from core.recovery import RecoverySession, RestoredSnapshot, SnapshotStore, restore, session
from core.recovery.copier import copy_database
from core.recovery.directory import DATABASE, DirectoryLock, in_memory
from core.recovery.ownership import check_ownership
from core.settings import Settings
from core.stopping import FENCE_SIGNAL
from snapshots import eventually, run_once


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
        run_once(one, epoch=5, state=b"five")
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
        run_once(tmp_path / "one", epoch=5, state=b"five")
        eventually(lambda: "recovery snapshot failed" in capfd.readouterr().err, "no fault was logged")
        obstore.put(objects, path, intact)
        eventually(lambda: (found := store.manifest()) and found.newest, "nothing was published")


def test_a_session_that_was_superseded_says_so(settings: Settings, tmp_path: Path) -> None:
    def run() -> None:
        with session(settings, flow="counting", directory=tmp_path / "one"):
            run_once(tmp_path / "one", epoch=5, state=b"five")
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
            run_once(tmp_path / "one", epoch=5, state=b"five")
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
        run_once(tmp_path / "one", epoch=5, state=b"five")
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
    run_once(tmp_path, epoch=5, state=b"five", workers=2)
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
        run_once(tmp_path, epoch=epoch, state=state)
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
    run_once(tmp_path, epoch=1, state=bytes(1_000_000))
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
