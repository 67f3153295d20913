"""The commit loop: brings pending commits into an Iceberg table, each exactly once, in order, beside the stream.

pyiceberg's own retries are not used: they delete the manifests of an attempt that was reported as failed. A Glue call
whose response was lost is sent again by the AWS client and then reports a conflict with itself, so that the deleted
manifests are those of a snapshot that did take effect. Here every attempt starts by looking at the table.
"""

from __future__ import annotations

import enum
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import tenacity
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata

from core.errors import CommitError, FencedError, PkmError, SnapshotError, UnreachableError
from core.markers import Marker
from core.records import Position
from core.recovery.ownership import check_ownership
from core.telemetry import COMMITS
from sinks.iceberg_catalog import COMMIT_ID_PROPERTY, OUTSIDE_FAULTS, look_for, marker_properties
from sinks.iceberg_files import KeyIndex, StoredFile, restore_file, without_keys, write_table
from sinks.iceberg_owner import Owner, claim
from sinks.iceberg_rows import Key

__all__ = ["Committer", "PendingCommit", "Retries", "Standing", "standing"]

# An overwrite keeps all manifests that it does not touch. From here on it is split in two: the append merges them.
MANIFESTS_UNTIL_MERGE = 100


@dataclass(frozen=True, slots=True)
class PendingCommit:
    """What one epoch does to one table: in data files, but not committed yet. Part of the recovery state.

    `keys` are replaced or deleted; `marker` is the table's after the commit; `starts` is the lowest position of this
    epoch's own records per shard.
    """

    table: str
    data_files: tuple[StoredFile, ...]
    keys: tuple[Key, ...]
    marker: Marker
    starts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    commit_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def commit_number(self) -> int:
        """The place of this commit in the table's order of commits."""
        return self.marker.commit_number

    @property
    def summary(self) -> dict[str, str]:
        """What the snapshot's summary says about the commit."""
        return {**marker_properties(self.marker), COMMIT_ID_PROPERTY: self.commit_id}


class Standing(enum.Enum):
    """How a pending commit stands to what the table holds."""

    OPEN = "nothing of it is in the table"
    DONE = "it is in the table, or another execution's commits hold all of it"
    FOREIGN = "another execution has committed a part of it"


def standing(pending: PendingCommit, *, committed: Marker, found: bool) -> Standing:
    """Tell whether a pending commit still has to be made.

    `found`: its id is in the table's history. Else positions decide: the marker of a table covers whole epochs, so
    that a marker inside this one can only come from an execution that cut the stream into other epochs.
    """
    if found:
        return Standing.DONE
    if not pending.starts:
        # Rows without positions replace rows by key: committing again changes nothing.
        return Standing.OPEN
    ends = [Position(shard, *pending.marker.positions[shard]) for shard in pending.starts]
    if all(committed.covers(end) for end in ends):
        return Standing.DONE
    starts = [Position(shard, *place) for shard, place in pending.starts.items()]
    return Standing.FOREIGN if any(committed.covers(start) for start in starts) else Standing.OPEN


@dataclass(frozen=True, slots=True)
class Retries:
    """How long a commit is tried: full jitter between `attempts`, none started after `seconds`."""

    attempts: int = 1_000
    seconds: float = 60.0
    longest_wait_seconds: float = 10.0
    first_wait_seconds: float = 0.2


class Committer:
    """Commits to one table, one commit at a time. Not safe to share between threads."""

    def __init__(
        self,
        table: Table,
        *,
        key_columns: tuple[str, ...],
        retries: Retries | None = None,
        owner: Owner | None = None,
    ) -> None:
        """With an `owner`, `claim` has to come before the first commit."""
        self._table = table
        self._owner = owner
        self._name = ".".join(table.name())
        self._key_columns = key_columns
        self._index = KeyIndex(key_columns)
        self._retries = retries or Retries()
        self._stale = False

    def commit(self, pending: PendingCommit) -> None:
        """Bring a pending commit into the table, unless it is there already.

        Raises CommitError when it can't be done within the retries, FencedError when a newer execution of the flow
        has claimed the table, or committed a part of the same records.
        """
        self._retried(lambda: self._attempt(pending), doing=f"commit {pending.commit_number}")

    def resume(self, pending: PendingCommit) -> None:
        """Bring a commit that a recovery snapshot names into the table, unless it is there already.

        Raises SnapshotError rather than commit files that are gone, which would leave a table that can't be read;
        else like `commit`.
        """
        self._retried(
            lambda: self._attempt(pending, resumed=True),
            doing=f"commit {pending.commit_number}",
            passing=(FencedError, SnapshotError),
        )

    def claim(self) -> None:
        """Make the owner the only execution of its flow that can commit.

        Raises CommitError like `commit`, FencedError when this process has been replaced itself, and what
        `check_ownership` raises when it can't tell.
        """
        self._retried(
            self._attempt_claim, doing="claiming it", passing=(FencedError, SnapshotError, UnreachableError)
        )

    def _retried(
        self,
        attempt_once: Callable[[], None],
        *,
        doing: str,
        passing: tuple[type[PkmError], ...] = (FencedError,),
    ) -> None:
        started = time.monotonic()
        attempts = 0
        try:
            for attempt in tenacity.Retrying(
                stop=tenacity.stop_after_attempt(self._retries.attempts)
                # A process that slept within its first attempt looks once more: the table may not be its own now.
                | (tenacity.stop_after_delay(self._retries.seconds) & tenacity.stop_after_attempt(2)),
                wait=tenacity.wait_random_exponential(
                    multiplier=self._retries.first_wait_seconds, max=self._retries.longest_wait_seconds
                ),
                retry=tenacity.retry_if_exception_type(
                    # After each of these the next attempt looks first, so that it does not matter which of them
                    # leaves the outcome open.
                    (CommitFailedException, CommitStateUnknownException, ValidationException, *OUTSIDE_FAULTS)
                ),
                reraise=True,
            ):
                with attempt:
                    attempts += 1
                    attempt_once()
        except passing:
            raise
        except Exception as error:  # whatever it is, the table stays behind and the flow has to stop
            raise CommitError(
                f"table {self._name}: {doing} failed after {attempts} attempts in"
                f" {time.monotonic() - started:.0f} s ({type(error).__name__}: {' '.join(str(error).split())});"
                " nothing is lost, the next start commits it"
            ) from error

    def _attempt(self, pending: PendingCommit, *, resumed: bool = False) -> None:
        self._look()
        if self._owner:
            self._owner.verify(self._table)
        committed, found = look_for(self._table, pending.commit_id, number=pending.commit_number)
        current = standing(pending, committed=committed, found=found)
        if current is Standing.FOREIGN:
            raise FencedError(
                f"table {self._name}: another execution of the flow has committed a part of commit"
                f" {pending.commit_number}: stop one of the two, or restore a newer snapshot (`pkm snapshots ls`)"
            )
        if resumed and current is Standing.OPEN:
            self._check_files(pending)
        if current is Standing.OPEN and self._change_table(pending):
            COMMITS.labels(store=self._name).inc()
        self._stale = False

    def _attempt_claim(self) -> None:
        self._look()
        if self._owner and not self._owner.owns(self._table):
            # Between the look and the claim: whoever replaces this process later claims the table after this look,
            # and so makes the claim fail that is built on it.
            check_ownership()
            transaction = _Transaction(self._table)
            claim(transaction, self._owner)
            _make(transaction)
        self._stale = False

    def _check_files(self, pending: PendingCommit) -> None:
        for file in pending.data_files:
            if not self._table.io.new_input(file["file_path"]).exists():
                raise SnapshotError(
                    f"{file['file_path']}, which the recovery snapshot names, is gone, and table {self._name} has not"
                    " got its rows: restore another snapshot (`pkm snapshots ls`)"
                )

    def _look(self) -> None:
        if self._stale:
            self._table.refresh()
        # Another writer, or an attempt of ours whose response is lost, may change the table from here on.
        self._stale = True

    def _change_table(self, pending: PendingCommit) -> bool:
        """Commit against the table as it was last seen; tells whether there was anything to change."""
        added = [restore_file(stored) for stored in pending.data_files]
        replaced = self._index.holding(self._table, pending.keys) if pending.keys else []
        if not added and not replaced:
            return False
        transaction = _Transaction(self._table)
        transaction.set_properties(marker_properties(pending.marker))
        if not replaced:
            _append(transaction, added, pending.summary)
        else:
            kept = write_table(self._table, without_keys(self._table, replaced, self._key_columns, pending.keys))
            snapshot = self._table.current_snapshot()
            manifests = len(snapshot.manifests(self._table.io)) if snapshot else 0
            if added and manifests > MANIFESTS_UNTIL_MERGE:
                _overwrite(transaction, replaced, kept, {})
                _append(transaction, added, pending.summary)
            else:
                _overwrite(transaction, replaced, [*kept, *added], pending.summary)
        _make(transaction)
        return True


class _Transaction(Transaction):
    """Copies the table's metadata once per change.

    pyiceberg's own copies it at each of a dozen looks, and a copy takes the longer the more snapshots a table has:
    with 250 snapshots that was half of a commit's processor time.
    """

    _copy: tuple[object, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata with the changes so far."""
        # The tuple of changes is never changed in place, so it is its own version.
        if self._copy is None or self._copy[0] is not self._updates:
            self._copy = (self._updates, super().table_metadata)
        return self._copy[1]


def _make(transaction: Transaction) -> None:
    # Without producers the transaction neither retries blindly nor deletes manifests after a failure; those of a
    # failed attempt are left to the clean-up of orphan files.
    transaction._snapshot_producers.clear()
    transaction.commit_transaction()


def _append(transaction: Transaction, added: Iterable[DataFile], summary: dict[str, str]) -> None:
    with transaction.update_snapshot(snapshot_properties=summary).merge_append() as append:
        for file in added:
            append.append_data_file(file)


def _overwrite(
    transaction: Transaction, replaced: Iterable[DataFile], added: Iterable[DataFile], summary: dict[str, str]
) -> None:
    with transaction.update_snapshot(snapshot_properties=summary).overwrite() as overwrite:
        for file in replaced:
            overwrite.delete_data_file(file)
        for file in added:
            overwrite.append_data_file(file)
