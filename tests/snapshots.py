"""Recovery snapshots as tests publish them, and what lies on S3 of them."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
from pydantic import SecretStr

from core import aws
from core.recovery import Snapshot, SnapshotStore
from core.recovery.directory import DATABASE
from core.recovery.under_way import UnderWay, hold, release
from core.settings import Settings

__all__ = [
    "CONTENT",
    "eventually",
    "newest_of",
    "object_names",
    "overwrite",
    "publish_one",
    "read_object",
    "run_once",
    "with_changes",
    "with_key",
    "writes_told_in",
]

CONTENT = b"SQLite format 3\x00" + bytes(range(256)) * 40


def with_changes(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


def with_key(settings: Settings, key: str = "open sesame") -> Settings:
    return with_changes(settings, snapshot_key=SecretStr(key))


def publish_one(store: SnapshotStore, content: bytes = CONTENT, *, execution: int = 1, epoch: int = 7) -> Snapshot:
    return store.publish(content, execution=execution, epoch=epoch, state_digest="aa")


def newest_of(store: SnapshotStore) -> Snapshot:
    manifest = store.manifest()
    assert manifest is not None
    assert manifest.newest is not None
    return manifest.newest


def object_names(settings: Settings, flow: str = "counting") -> set[str]:
    batches = obstore.list(aws.object_store(settings), prefix=f"snapshots/{flow}")
    return {meta["path"].rpartition("/")[2] for batch in batches for meta in batch}


def overwrite(settings: Settings, name: str, content: bytes) -> None:
    obstore.put(aws.object_store(settings), f"snapshots/counting/{name}", content)


def read_object(settings: Settings, name: str) -> bytes:
    return bytes(obstore.get(aws.object_store(settings), f"snapshots/counting/{name}").bytes())


def eventually(condition: Callable[[], object], otherwise: str, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@contextlib.contextmanager
def writes_told_in(directory: Path) -> Iterator[UnderWay]:
    """Have sinks tell their writes in `directory`, as they do where a copier looks at it."""
    writes = UnderWay(directory)
    hold(writes)
    try:
        yield writes
    finally:
        release(writes)
        writes.close()


def run_once(directory: Path, *, epoch: int, state: bytes, workers: int = 1) -> None:
    """Write to the database what bytewax writes at the end of an epoch."""
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as database, database:
        database.execute(
            "INSERT OR IGNORE INTO exs (ex_num, worker_count, resume_epoch) VALUES (0, ?, 1)", (workers,)
        )
        database.execute("INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES ('s', 'k', ?, ?)",
                         (epoch, state))  # fmt: skip
        database.execute("INSERT OR REPLACE INTO fronts (ex_num, worker_index, worker_frontier) VALUES (0, 0, ?)",
                         (epoch + 1,))  # fmt: skip
