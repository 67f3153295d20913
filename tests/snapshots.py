"""Recovery snapshots as tests publish them, and what lies on S3 of them."""

from __future__ import annotations

import obstore
from pydantic import SecretStr

from core import aws
from core.recovery import Snapshot, SnapshotStore
from core.settings import Settings

__all__ = [
    "CONTENT",
    "newest_of",
    "object_names",
    "overwrite",
    "publish_one",
    "read_object",
    "with_changes",
    "with_key",
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
