"""The fault points: every write of the flow and of its copier, and a SIGKILL before, inside or after it.

Nothing of this is in the product: a child process puts wrappers around the functions that do the writes, most of them
the clients' own, and kills itself at the n-th passage of one point.

    bronze.notes:file:before      nothing is sent yet
    bronze.notes:file:inside      the request is under way: what took effect is unknown
    bronze.notes:file:after       it took effect, but our own process has not heard of it yet
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["POINTS", "TABLES", "WRITES", "Doom", "copier_points", "flow_points", "kill_children"]

PHASES = ("before", "inside", "after")
AROUND = ("before", "after")
TABLES = ("bronze.notes", "bronze.failures", "silver.notes", "silver.metrics")

WRITES: dict[str, str] = {
    **{f"{table}:claim": "the execution that starts makes itself the table's owner" for table in TABLES},
    **{f"{table}:file": "a Parquet data file is put on S3" for table in TABLES},
    **{f"{table}:commit": "a whole commit: manifests, metadata file, catalog" for table in TABLES},
    **{f"{table}:metadata": "manifests are there; metadata file and pointer follow" for table in TABLES},
    **{f"{table}:pointer": "the catalog is pointed to the new metadata file" for table in TABLES},
    "vectors:open": "Lance: the writer's token",
    "vectors:claim": "Lance: the version that makes an older writer's merge fail",
    "vectors:store": "Lance: rows of an epoch are put on S3, to be merged beside the next one",
    "vectors:merge": "Lance: rows of an epoch are merged",
    "vectors:marker": "Lance: the marker follows the merge",
    "vectors:forget": "Lance: rows that are merged are deleted",
    "metadata:open": "SlateDB: a part is opened, its former writer fenced",
    "metadata:write": "SlateDB: rows and marker in one batch, in memory",
    "metadata:flush": "SlateDB: the log is put on S3",
    "metadata:durable": "SlateDB: the batch is known to be durable",
    "snapshot:claim": "the manifest names a new execution",
    "snapshot:object": "a copy of the recovery database is put on S3",
    "snapshot:manifest": "the manifest names the copy",
    "snapshot:delete": "old copies are deleted",
}
# These two only change or look at memory: there is no request to be inside of.
IN_MEMORY = ("metadata:write", "metadata:durable")
# Bytewax writes its epoch by itself, in Rust: the copier, which watches the file, stands in for a wrapper.
POINTS = (
    *(f"{write}:{phase}" for write in WRITES for phase in (AROUND if write in IN_MEMORY else PHASES)),
    "recovery:epoch:inside",
)

FIRST_GUESS_SECONDS = 0.004
SLOW_SECONDS = 3.0
TOO_LATE = " (too late)"


@dataclass
class Doom:
    """Kills this process at the n-th passage of a point; says so in a file first."""

    point: str
    passage: int
    log: Path
    alone: bool
    """Without its children: the copier lives on and publishes what it finds."""
    hurry: int
    """How often a death inside a write came too late: it comes the earlier."""
    slow: str
    """A write that takes three seconds longer."""

    def __post_init__(self) -> None:
        self._passages = 0
        self._lock = threading.Lock()
        self._shortest: dict[str, float] = {}

    @classmethod
    def from_environment(cls) -> Doom:
        return cls(
            os.environ.get("CHAOS_POINT", ""),
            int(os.environ.get("CHAOS_PASSAGE", "1")),
            Path(os.environ.get("CHAOS_LOG", "/dev/null")),
            os.environ.get("CHAOS_ALONE") == "1",
            int(os.environ.get("CHAOS_HURRY", "0")),
            os.environ.get("CHAOS_SLOW", ""),
        )

    def passes(self, point: str) -> None:
        """Die here, if this is the point and the passage."""
        if point == f"{self.slow}:before":
            time.sleep(SLOW_SECONDS)
        if self._is_due(point):
            self.die(point)

    @contextlib.contextmanager
    def inside(self, write: str) -> Iterator[None]:
        """Run a write; at the n-th passage of its middle, die half-way through it."""
        finished = threading.Event()
        started = time.monotonic()
        if self._is_due(f"{write}:inside"):
            delay = self._shortest.get(write, 2 * FIRST_GUESS_SECONDS) / 2 / 4**self.hurry

            def strike() -> None:
                time.sleep(delay)
                self.die(f"{write}:inside{TOO_LATE if finished.is_set() else ''}")

            threading.Thread(target=strike, daemon=True).start()
        yield
        finished.set()
        taken = time.monotonic() - started
        self._shortest[write] = min(taken, self._shortest.get(write, taken))

    def _is_due(self, point: str) -> bool:
        if point != self.point:
            return False
        with self._lock:
            self._passages += 1
            return self._passages == self.passage

    def die(self, point: str) -> None:
        """End this process as the kernel does when memory is short, or the machine as a power cut does."""
        with self.log.open("a") as log:
            log.write(f"{point}\n")
        if not self.alone:
            kill_children(os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal is on its way; nothing more may happen on this thread


def kill_children(process_id: int) -> None:
    """Kill what a process has started, and what that has."""
    for task in Path(f"/proc/{process_id}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                kill_children(int(child))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)


def around(doom: Doom, owner: Any, name: str, write_of: Callable[..., str | None]) -> None:
    """Put the three points of a write around a function; `write_of` gets its arguments and names the write."""
    original = getattr(owner, name)

    def wrapper(*arguments: Any, **options: Any) -> Any:
        write = write_of(*arguments, **options)
        if write is None:
            return original(*arguments, **options)
        doom.passes(f"{write}:before")
        with doom.inside(write):
            result = original(*arguments, **options)
        doom.passes(f"{write}:after")
        return result

    async def asynchronous(*arguments: Any, **options: Any) -> Any:
        write = write_of(*arguments, **options)
        doom.passes(f"{write}:before")
        with doom.inside(str(write)):
            result = await original(*arguments, **options)
        doom.passes(f"{write}:after")
        return result

    setattr(owner, name, asynchronous if inspect.iscoroutinefunction(original) else wrapper)


def flow_points(doom: Doom) -> None:
    """Wrap every write of the flow's process."""
    import lance
    from pyiceberg.catalog.glue import GlueCatalog
    from slatedb import uniffi

    from core.recovery import store
    from sinks import iceberg_commit, iceberg_files, lance_pending
    from sinks import lance as vectors

    around(doom, iceberg_files, "_put", lambda table, _: f"{_table(table.location())}:file")
    around(doom, iceberg_commit.Committer, "commit", lambda _, pending: f"{pending.table}:commit")
    claiming = threading.local()
    claim = iceberg_commit.Committer.claim

    def claim_marked(committer: Any) -> None:
        # A claim passes the catalog like a commit; its points are its own.
        claiming.now = True
        try:
            claim(committer)
        finally:
            claiming.now = False

    def unless_claiming(write: str) -> str | None:
        return None if getattr(claiming, "now", False) else write

    iceberg_commit.Committer.claim = claim_marked  # type: ignore[method-assign]
    around(doom, iceberg_commit.Committer, "claim", lambda committer: f"{committer._name}:claim")
    around(
        doom, GlueCatalog, "commit_table", lambda _, table, *__: unless_claiming(f"{'.'.join(table.name())}:metadata")
    )
    around(
        doom,
        GlueCatalog,
        "_update_glue_table",
        lambda _, **call: unless_claiming(f"{call['database_name']}.{call['table_name']}:pointer"),
    )
    around(
        doom,
        lance.LanceDataset,
        "update_metadata",
        lambda _, values: "vectors:marker" if vectors.MARKER in values else "vectors:open",
    )
    around(doom, lance_pending, "store", lambda *_: "vectors:store")
    around(doom, lance_pending, "forget", lambda *_: "vectors:forget")
    around(doom, lance.LanceDataset, "commit", lambda *_, **__: "vectors:claim")
    around(doom, lance.MergeInsertBuilder, "execute", lambda *_: "vectors:merge")
    around(doom, uniffi.DbBuilder, "build", lambda _: "metadata:open")
    around(doom, uniffi.Db, "write", lambda *_: "metadata:write")
    around(doom, uniffi.Db, "flush_with_options", lambda *_: "metadata:flush")
    around(doom, uniffi.WriteHandle, "await_durable", lambda _: "metadata:durable")
    store.obstore = _Objects(doom, manifest="snapshot:claim")  # type: ignore[attr-defined]


def copier_points(doom: Doom) -> None:
    """Wrap every write of the copier's process; here a death takes the flow along."""
    from core.recovery import copier, store

    flow = os.getppid()

    def die_together(point: str) -> None:
        with doom.log.open("a") as log:
            log.write(f"{point}\n")
        if not doom.alone:
            os.kill(flow, signal.SIGSTOP)  # nothing of it may go on while its children end
            kill_children_but(flow, os.getpid())
            os.kill(flow, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    doom.die = die_together  # type: ignore[method-assign]
    store.obstore = _Objects(doom, manifest="snapshot:manifest")  # type: ignore[attr-defined]
    original = copier._signature
    seen: list[Any] = [None]

    def signature(database: Path) -> Any:
        found = original(database)
        if None not in (seen[0], *found) and found != seen[0]:
            doom.passes("recovery:epoch:inside")
        seen[0] = found
        return found

    copier._signature = signature


def kill_children_but(process_id: int, spared: int) -> None:
    for task in Path(f"/proc/{process_id}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                if child != spared:
                    kill_children(child)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)


class _Objects:
    """Stands in for the module obstore in the snapshot store."""

    def __init__(self, doom: Doom, *, manifest: str) -> None:
        import obstore

        self._library = obstore
        self.put = obstore.put
        self.delete = obstore.delete

        def written(_: Any, path: str, *__: Any, **___: Any) -> str:
            return manifest if path.endswith("manifest.json") else "snapshot:object"

        around(doom, self, "put", written)
        around(doom, self, "delete", lambda *_: "snapshot:delete")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def _table(location: str) -> str:
    namespace, name = location.rstrip("/").rsplit("/", 2)[-2:]
    return f"{namespace.removesuffix('.db')}.{name}"
