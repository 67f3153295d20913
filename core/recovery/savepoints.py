"""Names of snapshots: finds one by id or name, gives and takes names. Pure functions over a manifest."""

from __future__ import annotations

import re
from dataclasses import replace

from core.errors import SnapshotError
from core.recovery.manifest import Manifest, Snapshot

__all__ = ["find", "forgotten", "saved"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find(manifest: Manifest, wanted: str) -> Snapshot:
    """Return the snapshot with the id or savepoint name `wanted`. Raises SnapshotError that lists what there is."""
    for one in manifest.snapshots:
        if wanted in {one.id, one.savepoint}:
            return one
    known = ", ".join(one.savepoint or one.id for one in manifest.snapshots)
    raise SnapshotError(f'flow {manifest.flow} has no snapshot "{wanted}": it has {known or "none"}')


def saved(manifest: Manifest, name: str) -> Snapshot:
    """Return the newest snapshot as a savepoint called `name`.

    Raises SnapshotError when there is no snapshot yet, or the name is taken or is none.
    """
    newest = manifest.newest
    if not _NAME.fullmatch(name):
        raise SnapshotError(
            f'"{name}" can\'t name a savepoint: use up to 64 letters, digits, ".", "-" and "_", a letter or digit '
            f"first"
        )
    if newest is None:
        raise SnapshotError(f"flow {manifest.flow} has no snapshot yet: run it first")
    if any(name in {one.id, one.savepoint} for one in manifest.snapshots):
        raise SnapshotError(f'flow {manifest.flow} has a snapshot "{name}" already: choose another name')
    if newest.savepoint:
        raise SnapshotError(
            f'the newest snapshot of flow {manifest.flow} is saved as "{newest.savepoint}" already: restore that'
        )
    return replace(newest, savepoint=name)


def forgotten(manifest: Manifest, name: str) -> Snapshot:
    """Return the savepoint `name` without its name. Raises SnapshotError when there is none."""
    for one in manifest.snapshots:
        if one.savepoint == name:
            return replace(one, savepoint=None)
    known = ", ".join(one.savepoint for one in manifest.snapshots if one.savepoint)
    raise SnapshotError(f'flow {manifest.flow} has no savepoint "{name}": it has {known or "none"}')
