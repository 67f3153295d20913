"""The Iceberg sink: each epoch of a stream becomes one commit of one table, exactly once.

A table has a single committer partition, which is the unit of parallelism; rows are made where the records are,
before they are sent to it. At the end of an epoch its rows are encoded as data files, which threads store and commit
beside the next epoch; the recovery state names what is not committed yet.

Delivery is exactly once: a commit stores the highest position per shard with the rows. After a restart commits that
the state names are made first, unless the table has them, and records at or below the table's marker are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import bytewax.operators as op
from bytewax.dataflow import Stream, operator
from bytewax.operators import KeyedStream
from bytewax.outputs import FixedPartitionedSink
from pyiceberg.table import Table

from core.first_error import noted
from core.records import Document, Failure, Note, WindowAggregate
from core.recovery.under_way import once_stored
from core.settings import Settings
from sinks.closing import CarefulPartition, ClosablePartition
from sinks.commit_queue import CommitQueue
from sinks.iceberg_catalog import load, load_table, table_marker
from sinks.iceberg_commit import Committer, PendingCommit, Retries
from sinks.iceberg_epoch import Epoch
from sinks.iceberg_files import put_files
from sinks.iceberg_owner import Owner
from sinks.iceberg_repetitions import Repetitions
from sinks.iceberg_rows import Change
from sinks.iceberg_tables import TableSpec

__all__ = ["IcebergSink", "TablePartition", "TableState", "output", "take_over"]

MAX_PENDING_COMMITS = 4
FLUSH_BYTES = 64 * 1024 * 1024

X = TypeVar("X", bound=Document | Note | WindowAggregate | Failure)


@dataclass(frozen=True, slots=True)
class TableState:
    """Recovery state of one table: the commits that are not made yet, in order, and the last number given.

    Their files may be on the way to S3 when the engine gets the state; all are there when it is published.
    """

    pending: tuple[PendingCommit, ...]
    commit_number: int


class TablePartition(ClosablePartition[Change, TableState]):
    """The one committer of a table."""

    def __init__(
        self,
        table: Table,
        spec: TableSpec,
        *,
        commit: Callable[[PendingCommit], None],
        resume: Callable[[PendingCommit], None] | None = None,
        resume_state: TableState | None = None,
        flush_bytes: int = FLUSH_BYTES,
        max_pending_commits: int = MAX_PENDING_COMMITS,
    ) -> None:
        """Make the commits that `resume_state` names with `resume` (or `commit`), then start from the table's marker.

        `table` is used for writing, on another thread too, and must not be the object that `commit` changes.
        Raises what `Committer.resume` raises.
        """
        self._spec = spec
        self._flush_bytes = flush_bytes
        self._max_pending_commits = max_pending_commits
        state = resume_state or TableState((), 0)
        for pending in state.pending:
            (resume or commit)(pending)
        self._table = table.refresh() if state.pending else table
        newest = table_marker(self._table)
        self._marker = newest.advanced((), commit_number=max(newest.commit_number, state.commit_number))
        self._repetitions = Repetitions(self._table, spec)
        self._epoch = self._new_epoch()
        self._queue = CommitQueue(commit, name=spec.identifier)

    def write_batch(self, values: list[Change]) -> None:
        """Gather the changes that the table does not have yet.

        Raises CommitError when an earlier epoch's commit failed, UnreachableError when rows can't be written, or
        could not be.
        """
        self._queue.raise_failure()
        # The marker stands still during an epoch: within one, records may arrive in any order. Of what comes again,
        # nothing comes after what is new of its shard, so it may go first.
        again = [change for change in values if change.position is not None and self._marker.covers(change.position)]
        fresh = [change for change in values if change.position is None or not self._marker.covers(change.position)]
        for change in (*self._repetitions.news(again), *fresh):
            self._epoch.add(change)

    def snapshot(self) -> TableState:
        """End the epoch and begin to store its files; the state speaks of them (`once_stored`).

        Waits while too many commits are pending. Raises CommitError when an earlier epoch's commit failed,
        UnreachableError when its files, or early files of this one, could not be stored.
        """
        self._queue.raise_failure()
        sealed, self._marker = self._epoch.seal(self._marker)
        self._epoch = self._new_epoch()
        if sealed is not None:
            self._queue.submit(sealed.pending, partial(put_files, self._table, sealed.contents))
        self._queue.wait(at_most=self._max_pending_commits)
        return once_stored(TableState(self._queue.unconfirmed(), self._marker.commit_number), self._queue.stored)

    def begin_close(self) -> None:
        """Make all pending commits without delay."""
        self._queue.hurry()

    def close(self) -> None:
        """Wait for all pending commits. Raises CommitError when one failed."""
        try:
            self._queue.wait()
        finally:
            self._queue.close()

    def _new_epoch(self) -> Epoch:
        return Epoch(self._table, self._spec, flush_bytes=self._flush_bytes)


def take_over(settings: Settings, table: TableSpec, *, flow: str) -> Committer:
    """Take a table over from whatever execution of `flow` had it, which can commit nothing from then on.

    Raises MissingError for a table that was not created, UnreachableError when the catalog does not answer, or S3
    can't tell whose the flow is, SnapshotError when the flow's manifest can't be trusted, CommitError when the table
    can't be claimed, FencedError when this process has been replaced itself.
    """
    committer = Committer(
        load_table(load(settings), settings, table.identifier),
        key_columns=table.key_columns,
        retries=Retries(seconds=settings.retry_seconds),
        owner=Owner(flow),
    )
    committer.claim()
    return committer


class IcebergSink(FixedPartitionedSink[Change, TableState]):
    """Writes changes to one Iceberg table; the table must exist (`pkm init`)."""

    def __init__(self, table: TableSpec, *, settings: Settings) -> None:
        self._spec = table
        self._settings = settings

    def list_parts(self) -> list[str]:
        """Name the one partition, after its table."""
        return [self._spec.identifier]

    def build_part(
        self, step_id: str, for_part: str, resume_state: TableState | None
    ) -> CarefulPartition[Change, TableState]:
        """Build the committer, and take the table over from whatever execution had it.

        Raises MissingError for a table that was not created, UnreachableError when the catalog does not answer,
        CommitError and FencedError when a commit that the state names can't be made, or the table not be taken over,
        SnapshotError when the state names files that are gone.
        """
        with noted():
            # Step ids begin with the flow's name.
            committer = take_over(self._settings, self._spec, flow=step_id.partition(".")[0])
            partition = TablePartition(
                load_table(load(self._settings), self._settings, for_part),
                self._spec,
                commit=committer.commit,
                resume=committer.resume,
                resume_state=resume_state,
            )
        return CarefulPartition(partition)


@operator
def output(
    step_id: str,  # noqa: ARG001 - the decorator reads it
    up: Stream[X],
    *,
    table: TableSpec,
    settings: Settings,
) -> None:
    """Write a stream of records to an Iceberg table.

    Documents go to bronze.notes, failures to bronze.failures, notes to silver.notes and window aggregates to
    silver.metrics. The table is the unit of parallelism. Exactly once, also after a restart from an old snapshot.

    :arg step_id: Unique Id.

    :arg up: Records of the kind that `table` takes.

    :arg table: One of `sinks.iceberg_tables.TABLES` that a stream fills.

    :arg settings: Catalog, warehouse and processing version.

    """
    change = table.change
    if change is None:
        raise ValueError(f"table {table.identifier} is not filled from a stream")

    def to_changes(items: list[X]) -> list[tuple[str, Change]]:
        now = datetime.now(UTC)
        return [(table.identifier, change(item, now, settings.processing_version)) for item in items]

    changes: KeyedStream[Change] = op.flat_map_batch("rows", up, to_changes)
    op.output("table", changes, IcebergSink(table, settings=settings))
