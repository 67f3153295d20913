"""Puts recovery snapshots around a flow: restores before bytewax opens its recovery store, then starts the copier.

`session` is for our own runner, `attach_to_bytewax_run` for a flow that plain `python -m bytewax.run` executes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from bytewax.dataflow import Dataflow

from core import bytewax_run, stopping
from core.errors import FencedError, PkmError, ResourceError, SnapshotError
from core.memory import check_room, keep_off_disks, private_folder
from core.recovery import directory as folder
from core.recovery import ownership, under_way
from core.recovery.fit import UNKNOWN, shape_of
from core.recovery.manifest import Snapshot
from core.recovery.process import CLOSE_SECONDS, FENCED, FULL, PUBLISHED, CopierProcess
from core.recovery.store import SnapshotStore
from core.settings import Settings

__all__ = ["RecoverySession", "RestoredSnapshot", "attach_to_bytewax_run", "restore", "session"]

LOCK_SECONDS = 30.0
# What is left for the rest of a process that was told to stop.
EXIT_SECONDS = 0.3

_log = structlog.get_logger(module=__name__)
_attached: list[RecoverySession] = []


@dataclass(frozen=True, slots=True)
class RestoredSnapshot:
    """A recovery directory that is ready for bytewax: `snapshot` is what is in it, None for an empty store.

    `execution` is the number under which the flow may publish. The directory is locked until `lock` is released or
    this process ends.
    """

    directory: Path
    execution: int
    snapshot: Snapshot | None
    lock: folder.DirectoryLock


def restore(
    settings: Settings, *, flow: str, directory: Path, process_id: int = 0, graph: Dataflow | None = None
) -> RestoredSnapshot | None:
    """Claim `flow` for a new execution and put its newest snapshot, or an empty store, into `directory`.

    What `directory` held before is removed: S3 is the truth. Manifest and snapshot are verified before SQLite sees
    them. Processes other than 0 of a cluster claim nothing and get an empty directory (unless it is the very one that
    a live process 0 uses); for them it returns None. With `settings.force_start` the snapshot is left alone.

    Raises SnapshotError when the snapshot is missing, damaged, forged or of another stream, when it does not fit
    `graph`, the flow that was built, or when a live process keeps using the directory; ResourceError when it does not
    fit into memory; MissingError without a bucket; UnreachableError without S3.
    """
    directory = directory.absolute()
    folder.make_private(directory)
    lock = folder.DirectoryLock(directory)
    if process_id != 0:
        if lock.acquire(seconds=0):
            folder.clear(directory)
        lock.release()
        return None
    store = SnapshotStore(settings, flow=flow)
    # Claimed before anything is removed: an older execution that still uses the directory is told to stop by that.
    shape = shape_of(graph, source_partitions=settings.source_partitions) if graph else UNKNOWN
    manifest = store.claim(shape)
    snapshot = None if settings.force_start else manifest.newest
    content = store.content(snapshot) if snapshot else None
    check_room(settings, directory, private_folder(), needed_bytes=len(content) if content else 0)
    if not lock.acquire(seconds=LOCK_SECONDS):
        lock.release()
        raise SnapshotError(
            f"another process still uses the recovery directory {directory}: stop it, or set PKM_RECOVERY_DIR"
        )
    folder.place(directory, content)
    return RestoredSnapshot(directory, manifest.execution, snapshot, lock)


class RecoverySession:
    """A restored recovery directory with the copier that keeps it on S3; made by `session`.

    `directory` is what bytewax's RecoveryConfig gets, `restored` what is in it (None in processes other than 0).
    """

    def __init__(
        self, settings: Settings, *, flow: str, directory: Path, process_id: int = 0, graph: Dataflow | None = None
    ) -> None:
        self.directory = directory.absolute()
        self.restored = restore(settings, flow=flow, directory=self.directory, process_id=process_id, graph=graph)
        self._flow = flow
        self._copier: CopierProcess | None = None
        self._closing = threading.Lock()
        if not folder.in_memory(self.directory):
            _log.warning("recovery directory is on a disk, not in memory", directory=str(self.directory))
        if self.restored:
            _log.info(
                "recovery state restored" if self.restored.snapshot else "no recovery snapshot; starting afresh",
                flow=flow,
                execution=self.restored.execution,
                snapshot=self.restored.snapshot.id if self.restored.snapshot else None,
            )
            self._writes = under_way.UnderWay(self.directory)
            self._copier = CopierProcess(
                settings, flow=flow, directory=self.directory, execution=self.restored.execution
            )
            store = SnapshotStore(settings, flow=flow)
            self._check_ownership = partial(store.check, self.restored.execution)
            ownership.hold(self._check_ownership)
            under_way.hold(self._writes)
        stopping.when_given_up(self._give_up)

    def close(self) -> None:
        """Have the last copy published, and end the copier; safe to repeat. Takes what time is left to a process
        that was told to stop.

        Raises FencedError when a newer execution has taken over, ResourceError when the flow was stopped before
        memory was full, SnapshotError when the last copy could not be published: nothing is lost then, the next start
        repeats what came after the newest snapshot. A process that was told to stop only logs the latter.
        """
        stopping.ending()
        with self._closing:
            self._close()

    def _give_up(self) -> None:
        try:
            self.close()
        except PkmError as error:
            stopping.fail()
            _log.error("recovery", error=str(error))

    def _close(self) -> None:
        running, self._copier = self._copier, None
        if running is None or self.restored is None:
            return
        ownership.release(self._check_ownership)
        under_way.release(self._writes)
        left = stopping.remaining_seconds()
        code = running.stop(seconds=CLOSE_SECONDS if left is None else max(left - EXIT_SECONDS, 0.0))
        self._writes.close()
        self.restored.lock.release()
        if code == FENCED:
            raise FencedError(
                f"execution {self.restored.execution} of flow {self._flow} was superseded by a newer one, and stopped"
            )
        if code == FULL:
            raise ResourceError(
                f"flow {self._flow} was stopped before its recovery state filled {self.directory}, see the log: "
                f"nothing is lost, the next start goes on from the last snapshot when there is room for it"
            )
        if code != PUBLISHED and left is not None:
            _log.warning("the last recovery snapshot could not be published in time; the newest one is resumed")
        elif code != PUBLISHED:
            raise SnapshotError(
                f"the last recovery snapshot of flow {self._flow} could not be published (copier ended with {code}): "
                f"the next start repeats what came after the newest one; see the log above"
            )


@contextlib.contextmanager
def session(
    settings: Settings, *, flow: str, directory: Path, process_id: int = 0, graph: Dataflow | None = None
) -> Iterator[RecoverySession]:
    """Restore `flow` into `directory`, copy it to S3 while the block runs, and publish the last copy at its end.

    Processes other than 0 of a cluster get an empty folder of their own beneath `directory`. Pass the session's
    `directory` to bytewax's RecoveryConfig. When all went well, the state in memory is removed at the end.

    Raises what `restore` and `RecoverySession.close` raise; an exception of the block itself goes first, unless the
    block was ended because a newer execution has taken over.
    """
    own = directory if process_id == 0 else directory / f"process-{process_id}"
    running = RecoverySession(settings, flow=flow, directory=own, process_id=process_id, graph=graph)
    try:
        yield running
    except BaseException:  # also when stopped: the state up to here is worth a copy
        try:
            running.close()
        except SnapshotError as error:
            _log.error("recovery", error=str(error))
        raise
    running.close()
    folder.clear(running.directory)


def attach_to_bytewax_run(
    settings: Settings,
    *,
    flow: str,
    graph: Dataflow | None = None,
    prepare: Callable[[int], None] = lambda _: None,
) -> None:
    """Give a flow that `python -m bytewax.run -r DIR` executes its snapshots on S3; a flow factory calls this.

    A snapshot that does not fit `graph`, the flow as it was built, is refused. `prepare` is called first, with the
    number of workers of this process: what it raises as a PkmError ends the process with one line, before anything
    is restored and before any other execution is superseded.

    bytewax opens DIR only after the factory returned, so state is restored into it first. The last copy is published
    when the interpreter ends. SIGTERM and Ctrl-C then stop the flow as `core.stopping` says, with or without a
    recovery directory.

    Does nothing in any other program, such as `bytewax.visualize` or a test.

    Raises what `restore` raises.
    """
    options = bytewax_run.options()
    if options is None or _attached:
        return
    keep_off_disks()
    stopping.handle_signals(exit_at_end=True)
    try:
        prepare(options.workers_per_process or 1)
    except PkmError as error:
        stopping.fail()
        sys.exit(f"pkm: {error}")
    if options.recovery_directory is None:
        return
    running = RecoverySession(
        settings,
        flow=flow,
        directory=Path(options.recovery_directory),
        process_id=options.process_id or 0,
        graph=graph,
    )
    _attached.append(running)
    owner = os.getpid()

    def close() -> None:
        if os.getpid() != owner:  # a forked child ends; the flow does not
            return
        try:
            running.close()
        except PkmError as error:
            # Without a stop the exit code can't be changed any more, and the next start repairs what is missing.
            stopping.fail()
            _log.error("recovery", error=str(error))

    atexit.register(close)
