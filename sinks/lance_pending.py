"""Epochs of the vector store that are stored but not merged yet: one immutable object each, beside the dataset.

    vectors/pending/NUMBER-ID.arrow         the rows; schema metadata says of which notes, and the marker

A merge takes a dozen requests, and the longer the larger the dataset is; before a recovery snapshot is published only
one is waited for, which stores the rows. The recovery state names the object, so that a restart merges what a killed
process had not.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import obstore
import orjson
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import structlog
from obstore.exceptions import BaseError

from core import aws
from core.errors import MissingError, UnreachableError, reason
from core.markers import Marker
from core.records import Position
from core.settings import Settings

__all__ = ["PendingMerge", "StoredEpoch", "VectorState", "fetch", "forget", "name", "store", "sweep"]

PREFIX = "vectors/pending/"

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


@dataclass(frozen=True, slots=True)
class StoredEpoch:
    """What one epoch changes: its notes (where each is from, whether it leaves no rows), and all their rows."""

    notes: Mapping[str, tuple[Position, bool]]
    rows: pa.Table
    marker: Marker

    def only(self, note_ids: Collection[str]) -> StoredEpoch:
        """Return the part of the epoch that is about these notes, with the same marker."""
        kept = pc.is_in(self.rows["note_id"], value_set=pa.array(sorted(note_ids), pa.string()))
        notes = {note_id: what for note_id, what in self.notes.items() if note_id in note_ids}
        return StoredEpoch(notes, self.rows.filter(kept), self.marker)

    def to_bytes(self) -> bytes:
        """Write as an Arrow stream."""
        notes = [
            # With the shard's own name in a replay, whose rows take the place of rows from the very same record.
            [note_id, position.shard_id, str(position.sequence_number), position.subsequence_number, gone]
            for note_id, (position, gone) in self.notes.items()
        ]
        told = {b"pkm.notes": orjson.dumps(notes), b"pkm.marker": self.marker.to_json().encode()}
        rows = self.rows.replace_schema_metadata({**(self.rows.schema.metadata or {}), **told})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, content: bytes) -> StoredEpoch:
        """Read what `to_bytes` wrote."""
        rows = pa.ipc.open_stream(content).read_all()
        told = dict(rows.schema.metadata)
        notes = {
            note_id: (Position(shard_id, int(sequence_number), subsequence_number), gone)
            for note_id, shard_id, sequence_number, subsequence_number, gone in orjson.loads(told.pop(b"pkm.notes"))
        }
        marker = Marker.from_json(told.pop(b"pkm.marker"))
        return cls(notes, rows.replace_schema_metadata(told or None), marker)


@dataclass(frozen=True, slots=True)
class PendingMerge:
    """Names a stored epoch; part of the recovery state."""

    path: str
    commit_number: int


@dataclass(frozen=True, slots=True)
class VectorState:
    """Recovery state of the vector store: the epochs that are stored and not merged, in order."""

    pending: tuple[PendingMerge, ...] = ()


def name(epoch: StoredEpoch) -> PendingMerge:
    """Say where an epoch will be stored."""
    number = epoch.marker.commit_number
    return PendingMerge(f"{PREFIX}{number:08d}-{uuid.uuid4().hex}.arrow", number)


def store(settings: Settings, pending: PendingMerge, epoch: StoredEpoch) -> None:
    """Store an epoch. Raises MissingError without a bucket, UnreachableError when S3 does not take it."""
    with _reaching(settings, pending.path):
        try:
            obstore.put(aws.object_store(settings), pending.path, epoch.to_bytes())
        except FileNotFoundError as error:
            raise MissingError(f'bucket "{settings.bucket}" does not exist: run `pkm init`') from error


def fetch(settings: Settings, pending: PendingMerge) -> StoredEpoch | None:
    """Read an epoch back, None when it is not there any more. Raises UnreachableError when S3 does not answer."""
    with _reaching(settings, pending.path):
        try:
            return StoredEpoch.from_bytes(bytes(obstore.get(aws.object_store(settings), pending.path).bytes()))
        except FileNotFoundError:
            return None


def forget(settings: Settings, pending: PendingMerge) -> None:
    """Delete an epoch that is merged. A failure is only logged: what stays costs little, and is swept later."""
    _delete(settings, [pending.path])


def sweep(settings: Settings, *, named: Collection[str]) -> None:
    """Delete what killed processes left behind, once no recovery snapshot can name it any more.

    Objects in `named` stay. Raises UnreachableError when S3 does not answer.
    """
    before = datetime.now(UTC) - timedelta(hours=settings.snapshot_retention_hours)
    with _reaching(settings, PREFIX):
        listed = [item for page in obstore.list(aws.object_store(settings), PREFIX) for item in page]
    _delete(settings, [one["path"] for one in listed if one["last_modified"] < before and one["path"] not in named])


def _delete(settings: Settings, paths: list[str]) -> None:
    if not paths:
        return
    try:
        obstore.delete(aws.object_store(settings), paths)
    except (BaseError, OSError) as error:
        _log.warning("merged rows of vectors were not deleted", objects=len(paths), error=reason(error))


@contextmanager
def _reaching(settings: Settings, path: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise UnreachableError(f"s3://{settings.bucket}/{path} can't be used: {reason(error)}") from error
