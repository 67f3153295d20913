"""Keeps a flow's recovery state on S3: restored before bytewax starts, copied beside it while it runs."""

from core.recovery.attach import RecoverySession, RestoredSnapshot, attach_to_bytewax_run, restore, session
from core.recovery.fit import FlowShape, shape_of
from core.recovery.manifest import Manifest, Snapshot
from core.recovery.store import SnapshotStore

__all__ = [
    "FlowShape",
    "Manifest",
    "RecoverySession",
    "RestoredSnapshot",
    "Snapshot",
    "SnapshotStore",
    "attach_to_bytewax_run",
    "restore",
    "session",
    "shape_of",
]
