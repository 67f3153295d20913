"""The process beside a flow that copies its recovery database to S3.

A process of its own, because bytewax links its own SQLite: two SQLite libraries on one file in one process break each
other's locks. It ends with its parent: a line or the end of its standard input, or another parent process, makes it
publish one last copy. It therefore ignores SIGINT and SIGTERM, which a terminal or a service manager sends to both.

    python -m core.recovery.copier --directory DIR --own DIR --flow FLOW --execution N --parent PID
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from core.errors import FencedError, PkmError, ResourceError, SnapshotError
from core.memory import check_room
from core.recovery.directory import DATABASE
from core.recovery.process import FENCED, FULL, LAST_COPY_SECONDS, PUBLISHED, UNPUBLISHED
from core.recovery.store import SnapshotStore
from core.recovery.under_way import Begun
from core.settings import Settings, load_settings
from core.stopping import FENCE_SIGNAL
from core.telemetry import configure_logging

__all__ = ["RESUMED_STATE", "DatabaseCopy", "copy_database", "main"]

POLL_SECONDS = 0.1
# A write that ends with the flow is told a moment later.
ENDED_SECONDS = 1.0
BUSY_SECONDS = 5.0
MAX_BACK_OFF_SECONDS = 60.0

# bytewax's own rule (its recovery.rs): the newest execution is resumed from the epoch its slowest worker reached.
RESUME_EPOCH = """
    WITH RECURSIVE
      latest AS (SELECT ex_num, worker_count, resume_epoch FROM exs ORDER BY ex_num DESC LIMIT 1),
      workers(worker_index) AS (
        SELECT 0 FROM latest UNION ALL
        SELECT worker_index + 1 FROM workers, latest WHERE worker_index + 1 < worker_count)
    SELECT min(max(latest.resume_epoch, coalesce(fronts.worker_frontier, 0)))
    FROM latest CROSS JOIN workers
    LEFT JOIN fronts ON fronts.ex_num = latest.ex_num AND fronts.worker_index = workers.worker_index
"""
# With max(), SQLite takes the other columns from the row that has the maximum.
RESUMED_STATE = """
    SELECT step_id, state_key, max(snap_epoch), ser_change FROM snaps WHERE snap_epoch < ?
    GROUP BY step_id, state_key ORDER BY step_id, state_key
"""

_log = structlog.get_logger(module="core.recovery.copier")


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """A consistent copy of the recovery database, the epoch it resumes from, and a digest of the state at it."""

    content: bytes
    epoch: int
    state_digest: str


def copy_database(path: Path, *, abandoned: bool = False) -> DatabaseCopy | None:
    """Copy the database at `path` as one cut, with what its write-ahead log holds; None before bytewax first ran.

    Left out is what workers have written of epochs that are not complete. Bytewax does not read it when it resumes,
    but lets it stand: where the repeated epoch does not write the same key again, the resume after that takes it for
    the newest state, of an epoch that never was.

    `abandoned` says that the process that wrote it is gone: then its log may have to be recovered, which writes.

    Raises sqlite3.Error when it can't be read, SnapshotError when it is damaged.
    """
    if not path.exists():
        return None
    try:
        memory = _into_memory(path, "ro")
    except sqlite3.OperationalError:
        if not abandoned:
            raise
        memory = _into_memory(path, "rw")
    with contextlib.closing(memory):
        verdict = memory.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise SnapshotError(f"the recovery database {path} is damaged ({verdict}), so it was not copied to S3")
        epoch: int | None = memory.execute(RESUME_EPOCH).fetchone()[0]
        if epoch is None:
            return None
        with memory:
            memory.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (epoch,))
        digest = hashlib.sha256()
        for step_id, state_key, _, change in memory.execute(RESUMED_STATE, (epoch,)):
            if change is not None:  # None is a state that was given up
                for part in (step_id.encode(), state_key.encode(), change):
                    digest.update(len(part).to_bytes(8, "big") + part)
        return DatabaseCopy(memory.serialize(), epoch, digest.hexdigest())


def _into_memory(path: Path, mode: str) -> sqlite3.Connection:
    memory = sqlite3.connect(":memory:")
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS)
        ) as database:
            database.backup(memory)
    except BaseException:  # whatever it was, the connection must be closed before it goes on
        memory.close()
        raise
    return memory


class _Copier:
    def __init__(
        self, settings: Settings, store: SnapshotStore, database: Path, own: Path, *, execution: int, parent: int
    ) -> None:
        self._settings = settings
        self._store = store
        self._database = database
        self._own = own
        self._execution = execution
        self._interval_seconds = float(settings.snapshot_seconds)
        self._full = False
        self._parent = parent
        self._published_state: str | None = None

    def run(self) -> int:
        """Copy until the parent ends, then once more; returns the exit code."""
        seen = settled = None
        failures = 0
        next_copy = time.monotonic()
        next_check = next_copy + self._interval_seconds
        while not self._parent_ended(POLL_SECONDS):
            now = time.monotonic()
            # An epoch's end is several transactions: copying waits until the file was quiet for one poll.
            current = _signature(self._database)
            quiet, seen = current == seen, current
            changed = current != settled and (quiet or now >= next_check)
            if now < next_copy or not (changed or now >= next_check):
                continue
            self._stop_before_memory_is_full()
            try:
                if not (changed and self._publish_if_changed()):
                    self._store.check(self._execution)
            except FencedError as error:
                return self._stop_parent(error)
            except (PkmError, sqlite3.Error) as error:
                failures += 1
                delay = _back_off_seconds(failures, self._interval_seconds)
                next_copy = now + delay
                _log.warning("recovery snapshot failed", error=str(error), retry_seconds=round(delay, 1))
            else:
                failures = 0
                settled = current
                # Half, so that a copy that was late does not make the next one late too.
                next_copy = now + self._interval_seconds / 2
                next_check = now + self._interval_seconds
        return self._finish()

    def _publish_if_changed(self) -> bool:
        """Publish the database if its state is not the one on S3; tell whether it was published."""
        copy = copy_database(self._database, abandoned=os.getppid() != self._parent)
        if copy is None:
            return False
        if self._published_state is None:
            manifest = self._store.manifest()
            newest = manifest.newest if manifest else None
            self._published_state = newest.state_digest if newest else hashlib.sha256().hexdigest()
        # bytewax writes at the end of every epoch, also when nothing happened; only state is worth a copy.
        if copy.state_digest == self._published_state or not self._stored():
            return False
        snapshot = self._store.publish(
            copy.content, execution=self._execution, epoch=copy.epoch, state_digest=copy.state_digest
        )
        self._published_state = copy.state_digest
        _log.debug("recovery snapshot published", uri=self._store.uri(snapshot), epoch=copy.epoch)
        return True

    def _stored(self) -> bool:
        """Wait until all that the copy speaks of is stored; False when it never will be.

        Raises SnapshotError when nothing tells which writes are under way.
        """
        try:
            begun = Begun(self._database.parent)
        except FileNotFoundError as error:
            raise SnapshotError(f"{error.filename} is gone, so the recovery database was not copied to S3") from error
        with contextlib.closing(begun):
            ended_at = None
            while not begun.stored:
                if self._parent_ended(POLL_SECONDS):
                    ended_at = ended_at or time.monotonic()
                    time.sleep(POLL_SECONDS)
                if begun.failed or (ended_at is not None and time.monotonic() - ended_at > ENDED_SECONDS):
                    _log.warning("what the newest state speaks of was not stored: an older snapshot will be resumed")
                    return False
        return True

    def _finish(self) -> int:
        deadline = time.monotonic() + LAST_COPY_SECONDS
        failures = 0
        while True:
            try:
                if not self._publish_if_changed():
                    self._store.check(self._execution)
            except FencedError as error:
                return self._stop_parent(error)
            except (PkmError, sqlite3.Error) as error:
                failures += 1
                delay = _back_off_seconds(failures, 1.0)
                if time.monotonic() + delay > deadline:
                    _log.error("last recovery snapshot failed; the next start repeats some epochs", error=str(error))
                    return UNPUBLISHED
                time.sleep(delay)
            else:
                return FULL if self._full else PUBLISHED

    def _stop_before_memory_is_full(self) -> None:
        """Have the flow end while its last state still fits; the copy of that is made as always."""
        if self._full:
            return
        try:
            check_room(self._settings, self._database.parent, self._own)
        except ResourceError as error:
            self._full = True
            _log.error("memory is nearly full; the flow is stopped", error=str(error))
            if os.getppid() == self._parent:
                os.kill(self._parent, signal.SIGTERM)

    def _stop_parent(self, error: FencedError) -> int:
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write(f"pkm: {error}\n")
            sys.stderr.flush()
        if os.getppid() == self._parent:
            os.kill(self._parent, FENCE_SIGNAL)
        return FENCED

    def _parent_ended(self, seconds: float) -> bool:
        # Also by process id: a child that the flow forked may hold the pipe open longer than the flow lives.
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(readable) or os.getppid() != self._parent


def _signature(database: Path) -> tuple[tuple[int, int] | None, ...]:
    """Tell versions of the database and its log apart without opening them."""
    found: list[tuple[int, int] | None] = []
    for path in (database, database.with_name(database.name + "-wal")):
        try:
            status = path.stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size))
    return tuple(found)


def _back_off_seconds(failures: int, first_seconds: float) -> float:
    longest = min(MAX_BACK_OFF_SECONDS, first_seconds * 2.0 ** min(failures, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, keeps no secret


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the database of one flow until its process ends; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m core.recovery.copier")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--own", type=Path, required=True)
    parser.add_argument("--flow", required=True)
    parser.add_argument("--execution", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    settings = load_settings()
    configure_logging(settings)
    return _Copier(
        settings,
        SnapshotStore(settings, flow=options.flow),
        options.directory / DATABASE,
        options.own,
        execution=options.execution,
        parent=options.parent,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
