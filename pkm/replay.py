"""Replays a bounded part of the stream on purpose: another model, another parser, a new processing version.

A replay is an execution of the knowledge flow with recovery snapshots of its own. It takes the flow's stores over: a
flow that still runs elsewhere ends with a fencing error, and one that is started meanwhile ends the replay, which the
same command resumes. So the two never write at the same time, and the newest version of a note always wins.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc  # type: ignore[import-untyped]

from core import stopping
from core.errors import FencedError, MissingError, SettingsError
from core.recovery import ownership
from core.recovery.attach import session
from core.recovery.directory import DirectoryLock
from core.recovery.store import SnapshotStore
from core.settings import Settings
from flows import knowledge, replay
from pkm.engine import execute
from pkm.replay_known import known_tables, take_over
from pkm.replay_plan import ReplayPlan, choose_version, create, finish, give_up, unfinished
from pkm.running import check_world
from sinks import iceberg_catalog
from sources.kinesis_client import StreamReader, read_client

__all__ = ["plan_replay", "run_replay"]


def plan_replay(
    settings: Settings, *, start: str, until: str | None = None, version: str | None = None, abandon: bool = False
) -> ReplayPlan:
    """Return the replay to run: the unfinished one when it is what the command asks for, else a new one.

    With `abandon` an unfinished one is forgotten first. Raises SettingsError for a range or version that can't be,
    and while another replay has not ended; MissingError for a shard that the stream does not have, and before
    `pkm init`; UnreachableError.
    """
    before = unfinished(settings)
    if before and not abandon:
        if before.is_what(start=start, until=until, version=version, stream=settings.stream):
            return before
        raise SettingsError(
            f"{before.name} (--from {before.start}{f' --until {before.until}' if before.until else ''}, version"
            f" {before.version}) has not ended: repeat its command to resume it, or add --abandon to forget it"
        )
    now = datetime.now(UTC)
    present = iceberg_catalog.scan(settings, "silver.notes", columns=("processing_version",))
    plan = ReplayPlan(
        name=f"replay-{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}",
        stream=settings.stream,
        start=start,
        until=until,
        asked_version=version,
        version=choose_version(
            version,
            live=settings.processing_version,
            present=pc.unique(present.column("processing_version")).to_pylist(),
            now=now,
        ),
        created_at=now,
    )
    only = plan.bounds.shard_id
    if only is not None:
        shards = StreamReader(read_client(settings), settings.stream).list_shards().shards
        if only not in shards:
            raise MissingError(f'stream "{settings.stream}" has no shard {only}: it has {", ".join(sorted(shards))}')
    if before:
        give_up(settings, before)
    create(settings, plan)
    return plan


def run_replay(
    settings: Settings,
    plan: ReplayPlan,
    *,
    workers: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Run a replay to its end; None when the process was told to stop, and then the same command resumes it.

    Raises FencedError when the flow runs on this machine, or is started anywhere while the replay runs; the PkmError
    that stopped the replay. Whatever was replaced until then stays replaced, and the replay can be resumed.
    """
    started = time.monotonic()
    check_world(settings, flow=knowledge.FLOW, workers=workers)
    bounds = plan.bounds
    replaying = settings.model_copy(update={"processing_version": plan.version, "force_start": False})
    with _flow_claimed(settings):
        tell("taking the stores over, and reading what they have")
        tables, unsettled = known_tables(settings, bounds, take_over(settings))
        if unsettled:
            tell(f"{unsettled} notes are left alone: the flow was ended while it wrote them, and will complete them")
        tell(f"{plan.name}: replaying with version {plan.version}; after a kill the same command resumes it")
        graph = replay.build(replaying, bounds=bounds, tables=tables)
        directory = settings.recovery_dir / plan.name
        with session(replaying, flow=plan.name, directory=directory, process_id=0, graph=graph) as recovery:
            execute(graph, replaying, directory=recovery.directory, workers=workers)
    if stopping.requested():
        return None
    finish(settings, plan, at=datetime.now(UTC))
    return {
        "replay": plan.name,
        "from": plan.start,
        "until": plan.until or plan.created_at.isoformat(),
        "version": plan.version,
        "resumed": bool(recovery.restored and recovery.restored.snapshot),
        "notes": _count(settings, "silver.notes", "processing_version", lambda value: value == plan.version),
        "failures": _count(settings, "bronze.failures", "message", lambda value: value.startswith(plan.name)),
        "seconds": round(time.monotonic() - started, 1),
    }


@contextmanager
def _flow_claimed(settings: Settings) -> Iterator[None]:
    """Fence every running execution of the flow; from here on a newer one fences this."""
    directory = settings.recovery_dir / knowledge.FLOW
    lock = DirectoryLock(directory) if directory.is_dir() else None
    try:
        if lock and not lock.acquire(seconds=0):
            raise FencedError(
                f"flow {knowledge.FLOW} runs on this machine (it uses {directory}): stop it, replay, start it again"
            )
        store = SnapshotStore(settings, flow=knowledge.FLOW)
        execution = store.claim().execution

        def check() -> None:
            SnapshotStore(settings, flow=knowledge.FLOW).check(execution)

        ownership.hold(check)
        try:
            yield
        finally:
            ownership.release(check)
    finally:
        if lock:
            lock.release()


def _count(settings: Settings, table: str, column: str, condition: Callable[[str], bool]) -> int:
    values = iceberg_catalog.scan(settings, table, columns=(column,)).column(column).value_counts().to_pylist()
    return sum(int(value["counts"]) for value in values if condition(value["values"]))
