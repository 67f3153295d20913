"""The vector store on Lance: the sink that writes one row per chunk.

    lance.output("vectors", notes, settings=settings)

One partition commits. At the end of an epoch its rows are stored (`sinks.lance_pending`); they are merged beside the
next one. Delivery is exactly once: an epoch is one merge, which replaces the chunks of its notes whole, and the
marker of what it covers follows in the table's metadata. A crash between the two repeats the merge, which changes
nothing the second time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import bytewax.operators as op
import lance
import pyarrow  # type: ignore[import-untyped]
import structlog
from bytewax.dataflow import Stream, operator
from bytewax.outputs import FixedPartitionedSink

from core.errors import FencedError, MissingError, SnapshotError
from core.first_error import noted
from core.markers import Marker
from core.records import Note, Position
from core.recovery.ownership import check_ownership
from core.recovery.under_way import once_stored
from core.settings import Settings
from core.telemetry import COMMITS
from sinks import lance_pending
from sinks.closing import CarefulPartition, ClosablePartition
from sinks.commit_queue import CommitQueue
from sinks.lance_dataset import (
    attempts,
    check_dataset,
    create_dataset,
    dimension_of,
    faults,
    open_dataset,
)
from sinks.lance_pending import PendingMerge, StoredEpoch, VectorState
from sinks.lance_reader import SearchHit, count_chunks, count_notes, note_positions, search
from sinks.lance_rows import belongs_to, positions_of, rows_of, storable
from sinks.versions import covered_ids, is_repeated, newest_versions, uncommitted

__all__ = [
    "MARKER",
    "SearchHit",
    "VectorPart",
    "VectorSink",
    "check_dataset",
    "count_chunks",
    "count_notes",
    "create_dataset",
    "note_positions",
    "output",
    "search",
]

MARKER = "pkm.marker"
WRITER = "pkm.writer"
PART = "vectors"
MAX_PENDING_MERGES = 4

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """An epoch on its way into the dataset, and where it is stored."""

    reference: PendingMerge
    epoch: StoredEpoch


@operator
def output(step_id: str, up: Stream[Note], *, settings: Settings) -> None:  # noqa: ARG001 - the engine uses step_id
    """Write the chunks of notes; the newest version of a note replaces all chunks of the older ones.

    A note that is deleted or has no text loses all its chunks. One partition, exactly once. The flow stops with
    MissingError before `pkm init`, SettingsError when the model's dimension is not the dataset's, FencedError when
    a newer execution writes, CommitError or UnreachableError when that outlasts all retries.
    """
    keyed = op.key_on("key", up, lambda _: PART)
    op.output("write", keyed, VectorSink(settings))


class VectorSink(FixedPartitionedSink[Note, VectorState]):
    """Writes all notes through one partition, so that an epoch is one commit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def list_parts(self) -> list[str]:
        """Name the one partition."""
        return [PART]

    def build_part(
        self,
        step_id: str,  # noqa: ARG002
        for_part: str,  # noqa: ARG002
        resume_state: VectorState | None,
    ) -> CarefulPartition[Note, VectorState]:
        """Open the dataset for writing, and merge what the state names. Its own marker tells what it holds."""
        with noted():
            try:
                return CarefulPartition(VectorPart(self._settings, resume_state))
            except MissingError:
                if self._settings.enrich == "none":
                    return CarefulPartition(NoVectors())
                raise


class NoVectors(ClosablePartition[Note, VectorState]):
    """Stands in for a dataset that was never made, since no note has vectors: there is nothing to write or delete."""

    def write_batch(self, values: list[Note]) -> None:
        """Take notes without chunks."""

    def snapshot(self) -> VectorState:
        """Return that nothing is pending."""
        return VectorState()


class VectorPart(ClosablePartition[Note, VectorState]):
    """The one writer of the dataset. The last to open it writes; whoever opened it earlier is fenced."""

    def __init__(self, settings: Settings, resume_state: VectorState | None = None) -> None:
        """Take the dataset over and merge the epochs that `resume_state` names.

        Raises SnapshotError when one of them is gone although it was never merged, FencedError when this process
        has been replaced itself.
        """
        self._settings = settings
        self._pending: list[Note] = []
        self._token = uuid.uuid4().hex
        self._dataset = open_dataset(settings)
        self._dimension = dimension_of(self._dataset)
        for attempt in attempts(settings):
            with attempt, faults(settings, "open"):
                self._claim()
        stored = self._dataset.metadata.get(MARKER)
        self._marker = Marker.from_json(stored) if stored else Marker()
        named = resume_state.pending if resume_state else ()
        for pending in named:
            self._resume(pending)
        lance_pending.sweep(settings, named={pending.path for pending in named})
        self._queue: CommitQueue[_Stored] = CommitQueue(self._commit, name=PART)

    @property
    def marker(self) -> Marker:
        """What the dataset covers, stored epochs included."""
        return self._marker

    def write_batch(self, values: list[Note]) -> None:
        """Keep the notes until the epoch ends. Raises what an earlier epoch's merge failed with."""
        self._queue.raise_failure()
        self._pending += values

    def snapshot(self) -> VectorState:
        """Begin to store the epoch's rows; waits while too many merges are pending.

        Raises what an earlier epoch failed with, UnreachableError when its rows could not be stored among it.
        """
        again = covered_ids(self._pending, self._marker)
        if again:
            # What is on its way counts as stored, and the dataset has no other user then.
            self._queue.wait()
        stored = self._stored_positions(again) if again else {}
        lacking = uncommitted(self._pending, self._marker, stored, leaves_nothing=_leaves_nothing)
        self._pending.clear()
        if lacking:
            epoch = self._epoch_of(lacking)
            reference = lance_pending.name(epoch)
            self._marker = epoch.marker
            self._queue.submit(
                _Stored(reference, epoch), partial(lance_pending.store, self._settings, reference, epoch)
            )
        self._queue.wait(at_most=MAX_PENDING_MERGES)
        state = VectorState(tuple(unconfirmed.reference for unconfirmed in self._queue.unconfirmed()))
        return once_stored(state, self._queue.stored)

    def begin_close(self) -> None:
        """Merge all that is pending without delay."""
        self._queue.hurry()

    def close(self) -> None:
        """Wait until all is merged. Raises what a merge failed with."""
        try:
            self._queue.wait()
        finally:
            self._queue.close()

    def _resume(self, pending: PendingMerge) -> None:
        epoch = lance_pending.fetch(self._settings, pending)
        if epoch is None:
            # It is deleted when it is merged, and the numbers of merges only grow.
            if self._marker.commit_number >= pending.commit_number:
                return
            raise SnapshotError(
                f"s3://{self._settings.bucket}/{pending.path}, which the recovery snapshot names, is gone, and"
                f" {self._settings.vectors_uri} has not got it: restore another snapshot (`pkm snapshots ls`)"
            )
        # Later epochs may be merged already, so only notes that are not newer by now are looked at.
        stored = self._stored_positions(list(epoch.notes))
        lacking = {
            note_id
            for note_id, (position, gone) in epoch.notes.items()
            if not is_repeated(position, stored.get(note_id), leaves_nothing=gone)
        }
        self._marker = self._marker.joined(epoch.marker)
        self._commit(_Stored(pending, replace(epoch.only(lacking), marker=self._marker)))

    def _stored_positions(self, note_ids: list[str]) -> dict[str, Position]:
        for attempt in attempts(self._settings):
            with attempt, faults(self._settings, "read"):
                self._dataset.checkout_latest()  # type: ignore[no-untyped-call]
                rows = self._dataset.to_table(columns=["note_id", "position"], filter=belongs_to(note_ids))
        return positions_of(rows)

    def _epoch_of(self, notes: list[Note]) -> StoredEpoch:
        newest = newest_versions(notes)
        return StoredEpoch(
            {storable(note_id): (note.event.position, _leaves_nothing(note)) for note_id, note in newest.items()},
            rows_of(newest.values(), dimension=self._dimension),
            self._marker.advanced(
                (note.event.position for note in notes), commit_number=self._marker.commit_number + 1
            ),
        )

    def _commit(self, stored: _Stored) -> None:
        started, epoch = time.monotonic(), stored.epoch
        for attempt in attempts(self._settings):
            with attempt, faults(self._settings, "commit"):
                self._verify_writer()
                if epoch.notes:
                    self._merge(epoch.notes, epoch.rows)
                # With the token, which a claim changes too: the two conflict, so that an older writer which wakes up
                # here does not set the marker back.
                self._dataset.update_metadata({MARKER: epoch.marker.to_json(), WRITER: self._token})
        lance_pending.forget(self._settings, stored.reference)
        COMMITS.labels(store="vectors").inc()
        _log.debug(
            "vectors committed",
            notes=len(epoch.notes),
            chunks=epoch.rows.num_rows,
            fragments=len(self._dataset.get_fragments()),
            milliseconds=round((time.monotonic() - started) * 1000),
        )

    def _claim(self) -> None:
        """Make this the writer.

        The token stops what else changes it: another claim, and the marker. It would not stop a merge that an older
        writer has begun, for the two do not conflict; listing the fragments anew does, with every merge and every
        such list that is built on an earlier version. So an older writer that wakes up here takes nothing back.
        """
        self._dataset.checkout_latest()  # type: ignore[no-untyped-call]
        # After the look: whoever replaces this process later changes the same key, which makes the next line fail.
        check_ownership()
        self._dataset.update_metadata({WRITER: self._token})
        fragments = [fragment.metadata for fragment in self._dataset.get_fragments()]
        self._dataset = lance.LanceDataset.commit(
            self._dataset,
            lance.LanceOperation.Merge(fragments, self._dataset.lance_schema),
            read_version=self._dataset.version,
            max_retries=0,
        )

    def _verify_writer(self) -> None:
        """Look at the newest version. Raises FencedError when a newer execution has claimed the dataset."""
        self._dataset.checkout_latest()  # type: ignore[no-untyped-call]
        if self._dataset.metadata.get(WRITER) != self._token:
            raise FencedError(
                f"{self._settings.vectors_uri} was opened by a newer execution: this one stops; "
                "run only one flow per dataset"
            )

    def _merge(self, note_ids: Iterable[str], rows: pyarrow.Table) -> None:
        """Make the rows all that the dataset has of these notes, in one commit."""
        # No retries inside: a retry has to look again who the writer is.
        (
            self._dataset.merge_insert("id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(belongs_to(note_ids))
            .conflict_retries(0)
            .execute(rows)
        )


def _leaves_nothing(note: Note) -> bool:
    return note.event.deleted or not note.chunks
