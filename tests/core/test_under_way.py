"""What a sink has only begun to store is not spoken of by any snapshot on S3 until it is stored."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.deferred import settled
from core.errors import UnreachableError
from core.recovery import RecoverySession, SnapshotStore, session
from core.recovery.under_way import Begun, UnderWay, once_stored
from core.settings import Settings
from snapshots import eventually, newest_of, run_once, writes_told_in

FLOW = "counting"


@pytest.fixture
def writes(tmp_path: Path) -> Iterator[UnderWay]:
    with writes_told_in(tmp_path) as writes:
        yield writes


def test_all_is_stored_when_nothing_was_begun(tmp_path: Path, writes: UnderWay) -> None:
    assert Begun(tmp_path).stored


def test_what_begins_later_is_not_waited_for(tmp_path: Path, writes: UnderWay) -> None:
    first, second = Future[str](), Future[str]()
    writes.begin(first)
    begun = Begun(tmp_path)
    writes.begin(second)
    assert not begun.stored
    first.set_result("stored")
    assert begun.stored
    assert not Begun(tmp_path).stored


@given(order=st.permutations(range(6)), seen_after=st.integers(0, 6))
def test_it_is_stored_when_the_last_of_it_is_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], seen_after: int
) -> None:
    folder = tmp_path_factory.mktemp("writes")
    writes = UnderWay(folder)
    begun = [Begun(folder)]
    futures = [Future[None]() for _ in order]
    for future in futures:
        writes.begin(future)
        begun.append(Begun(folder))
    waits_for = begun[seen_after]
    left = set(range(seen_after))
    for number in order:
        assert waits_for.stored == (not left)
        futures[number].set_result(None)
        left.discard(number)
    assert waits_for.stored
    for one in begun:
        one.close()
    writes.close()


@pytest.mark.parametrize("end", ["raises", "cancelled"])
def test_what_was_not_stored_never_will_be(tmp_path: Path, writes: UnderWay, end: str) -> None:
    lost, good = Future[None](), Future[None]()
    writes.begin(lost)
    writes.begin(good)
    begun = Begun(tmp_path)
    good.set_result(None)
    if end == "raises":
        lost.set_exception(UnreachableError("S3 is down"))
    else:
        lost.cancel()
    assert (begun.stored, begun.failed) == (False, True)


def test_the_stream_goes_on_where_a_copier_waits_and_only_there(tmp_path: Path) -> None:
    write = Future[str]()
    waiting = once_stored("state", write)
    with writes_told_in(tmp_path):
        assert once_stored("state", write) == "state"
        assert not Begun(tmp_path).stored
    write.set_result("stored")
    assert settled(waiting) == "state"
    assert pickle.loads(pickle.dumps(waiting)) == "state"


def test_where_nobody_waits_for_it_the_state_raises_what_the_write_failed_with() -> None:
    write = Future[str]()
    write.set_exception(UnreachableError("S3 is down"))
    with pytest.raises(UnreachableError, match="S3 is down"):
        settled(once_stored("state", write))


def test_a_snapshot_is_published_when_what_it_speaks_of_is_stored(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"snapshot_seconds": 1})
    store, write = SnapshotStore(settings, flow=FLOW), Future[None]()

    def epochs() -> list[int]:
        manifest = store.manifest()
        return [snapshot.epoch for snapshot in manifest.snapshots] if manifest else []

    with session(settings, flow=FLOW, directory=tmp_path / "one"):
        run_once(tmp_path / "one", epoch=5, state=b"five")
        eventually(lambda: epochs() == [6], "nothing was published")
        assert once_stored("state", write) == "state"
        run_once(tmp_path / "one", epoch=6, state=b"six")
        time.sleep(3)
        assert epochs() == [6], "it was published before it was true"
        write.set_result(None)
        eventually(lambda: 7 in epochs(), "it was not published when it was true")


def test_after_a_write_that_failed_the_snapshot_before_it_stays_the_newest(
    settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"snapshot_seconds": 1})
    store, write = SnapshotStore(settings, flow=FLOW), Future[None]()
    with session(settings, flow=FLOW, directory=tmp_path / "one"):
        run_once(tmp_path / "one", epoch=5, state=b"five")
        eventually(lambda: (found := store.manifest()) and found.newest, "nothing was published")
        once_stored("state", write)
        run_once(tmp_path / "one", epoch=6, state=b"six")
        write.set_exception(UnreachableError("S3 is down"))
    assert newest_of(store).epoch == 6


def _killed_with_a_write_under_way(settings: Settings, directory: Path) -> None:
    running = RecoverySession(settings, flow=FLOW, directory=directory)
    run_once(directory, epoch=5, state=b"five")
    eventually(lambda: (found := SnapshotStore(settings, flow=FLOW).manifest()) and found.newest, "nothing published")
    once_stored("state", Future[None]())
    run_once(directory, epoch=6, state=b"six")
    assert running.restored
    os._exit(9)


def test_a_flow_that_is_killed_before_it_is_stored_leaves_no_snapshot_of_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"snapshot_seconds": 1})
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_with_a_write_under_way, args=(settings, tmp_path / "one")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
    # The copier lives on for a moment, and looks once more.
    time.sleep(4)
    assert newest_of(SnapshotStore(settings, flow=FLOW)).epoch == 6
