"""Savepoints for a person: lists a flow's snapshots, keeps one by name, goes back to one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from core.errors import SettingsError
from core.recovery import Manifest, Snapshot, SnapshotStore, shape_of
from core.recovery.manifest import SIGNED
from core.settings import Settings

__all__ = ["forget", "list_snapshots", "restore", "save"]


def list_snapshots(settings: Settings, *, flow: str) -> list[dict[str, Any]]:
    """Return the snapshots of `flow`, the one to resume from first. Raises SnapshotError, UnreachableError."""
    manifest = SnapshotStore(settings, flow=flow).manifest()
    return [_row(one, manifest) for one in reversed(manifest.snapshots)] if manifest else []


def save(settings: Settings, name: str, *, flow: str) -> dict[str, Any]:
    """Keep the newest snapshot of `flow` as `name`, however old it gets; a running flow is not disturbed."""
    return _row(SnapshotStore(settings, flow=flow).save(name))


def forget(settings: Settings, name: str, *, flow: str) -> dict[str, Any]:
    """Take the name of a savepoint away, so that it expires like any other snapshot."""
    return _row(SnapshotStore(settings, flow=flow).forget(name))


def restore(settings: Settings, snapshot: str, *, flow: str, force: bool) -> dict[str, Any]:
    """Make the next start of `flow` go on from `snapshot`, an id or a name; a flow that runs now is stopped.

    Raises SnapshotError when there is no such snapshot, it is damaged or forged, or does not fit the flow.
    """
    # Here, not at the top: the flow brings every library along, and listing needs none of them.
    from pkm.running import FLOWS

    if flow not in FLOWS:
        raise SettingsError(f'there is no flow "{flow}": choose one of {", ".join(FLOWS)}')
    store = SnapshotStore(settings, flow=flow)
    shape = shape_of(FLOWS[flow](settings), source_partitions=settings.source_partitions)
    manifest = store.choose(snapshot, shape, force=force)
    chosen = manifest.snapshots[-1]
    return {"flow": flow, "resumes_from": chosen.id, "savepoint": chosen.savepoint, "execution": manifest.execution}


def _row(one: Snapshot, manifest: Manifest | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": one.id,
        "name": one.savepoint,
        "created_at": one.created_at,
        "age_seconds": round((datetime.now(UTC) - one.created_at).total_seconds()),
        "execution": one.execution,
        "counter": one.counter,
        "epoch": one.epoch,
        "size_bytes": one.size_bytes,
        "signed": one.digest_algorithm == SIGNED,
    }
    return {**row, "resumed_next": one is manifest.newest} if manifest else row
