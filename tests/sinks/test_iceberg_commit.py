"""The commit loop against a real catalog: conflicts, lost responses, foreign snapshots."""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa
import pytest
from botocore.exceptions import EndpointConnectionError
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException

from core.errors import CommitError, FencedError
from core.markers import Marker
from core.settings import Settings
from core.telemetry import COMMITS
from iceberg_commits import NOON, QUICK, Faults, failure, load, messages, metrics, owned, pending, window
from sinks import iceberg_catalog
from sinks.iceberg_commit import Committer
from sinks.iceberg_rows import Change
from sinks.iceberg_tables import SILVER_METRICS

pytestmark = pytest.mark.usefixtures("tables")


def test_a_commit_is_one_snapshot_with_the_marker_and_is_counted(settings: Settings) -> None:
    counter = COMMITS.labels(store="bronze.failures")
    counted = counter._value.get()
    Committer(load(settings), key_columns=()).commit(pending(settings, [failure(1), failure(2)]))
    assert messages(settings) == [1, 2]
    assert iceberg_catalog.marker(settings, "bronze.failures") == Marker({"shard": (2, 0)}, 1)
    assert len(load(settings).metadata.snapshots) == 1
    assert counter._value.get() == counted + 1


def test_a_commit_that_is_made_twice_takes_effect_once(settings: Settings) -> None:
    commit = pending(settings, [failure(1)])
    Committer(load(settings), key_columns=()).commit(commit)
    Committer(load(settings), key_columns=()).commit(commit)
    assert messages(settings) == [1]


@pytest.mark.parametrize(
    "fault",
    [
        CommitStateUnknownException("gateway timeout"),
        # What Glue answers when the AWS client sends a call again whose first response was lost.
        CommitFailedException("Glue detected concurrent update"),
        EndpointConnectionError(endpoint_url="http://glue"),
        ConnectionResetError("reset by peer"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_commit_whose_response_is_lost_is_not_repeated(settings: Settings, fault: Exception) -> None:
    table = load(settings)
    faults = Faults(table, after=[fault])
    Committer(table, key_columns=(), retries=QUICK).commit(pending(settings, [failure(1), failure(2)]))
    assert faults.calls == 1
    # Reading proves that no manifest of the commit was cleaned up.
    assert messages(settings) == [1, 2]


def test_a_commit_that_did_not_arrive_is_made_again(settings: Settings) -> None:
    table = load(settings)
    faults = Faults(table, before=[ConnectionResetError(), CommitStateUnknownException("503")])
    Committer(table, key_columns=(), retries=QUICK).commit(pending(settings, [failure(1)]))
    assert faults.calls == 3
    assert messages(settings) == [1]


def test_rows_of_another_writer_survive_a_conflict(settings: Settings) -> None:
    committer = Committer(load(settings), key_columns=(), retries=QUICK)
    first = pending(settings, [failure(1)])
    committer.commit(first)
    other = load(settings)
    (row,) = other.scan().to_arrow().to_pylist()
    other.append(pa.Table.from_pylist([{**row, "message": "100"}], schema=other.schema().as_arrow()))
    committer.commit(pending(settings, [failure(2)], after=first.marker))
    assert messages(settings) == [1, 2, 100]


def test_the_marker_is_found_behind_snapshots_that_have_none(settings: Settings) -> None:
    commit = pending(settings, [failure(1)])
    Committer(load(settings), key_columns=()).commit(commit)
    for _ in range(2):
        other = load(settings)
        other.append(other.scan().to_arrow().slice(0, 1))
    assert iceberg_catalog.marker(settings, "bronze.failures") == commit.marker
    Committer(load(settings), key_columns=()).commit(commit)
    assert iceberg_catalog.row_count(settings, "bronze.failures") == 3


def test_a_commit_fails_with_the_table_the_attempts_and_the_cause(settings: Settings) -> None:
    table = load(settings)
    Faults(table, before=[ConnectionResetError("reset by peer")] * 4)
    commit = pending(settings, [failure(1)])
    with pytest.raises(CommitError, match=r"bronze\.failures: commit 1 failed after 4 attempts.*reset by peer.*next"):
        Committer(table, key_columns=(), retries=QUICK).commit(commit)
    assert messages(settings) == []
    Committer(load(settings), key_columns=()).commit(commit)
    assert messages(settings) == [1]


def test_an_execution_that_was_overtaken_is_fenced(settings: Settings) -> None:
    old = Committer(load(settings), key_columns=(), retries=QUICK)
    overtaken = pending(settings, [failure(1), failure(2), failure(3)])
    Committer(load(settings), key_columns=()).commit(pending(settings, [failure(1), failure(2)]))
    with pytest.raises(FencedError, match=r"bronze\.failures: another execution"):
        old.commit(overtaken)
    assert messages(settings) == [1, 2]


def test_a_commit_whose_records_another_execution_has_committed_is_done(settings: Settings) -> None:
    behind = pending(settings, [failure(1)])
    Committer(load(settings), key_columns=()).commit(pending(settings, [failure(1), failure(2)]))
    Committer(load(settings), key_columns=()).commit(behind)
    assert messages(settings) == [1, 2]


def test_the_marker_outlives_compaction_by_another_client_and_the_expiry_of_all_older_snapshots(
    settings: Settings,
) -> None:
    committer = owned(settings)
    committer.claim()
    commit = pending(settings, [failure(1), failure(2)])
    committer.commit(commit)
    other = load(settings)
    other.overwrite(other.scan().to_arrow())
    other.maintenance.expire_snapshots().older_than(datetime.now() + timedelta(seconds=1)).commit()  # noqa: DTZ005
    table = load(settings)
    (left,) = table.metadata.snapshots
    assert left.summary is not None
    assert left.summary[iceberg_catalog.MARKER_PROPERTY] is None
    assert iceberg_catalog.table_marker(table) == commit.marker
    # The same commit again, as a restored snapshot would have it.
    Committer(load(settings), key_columns=(), retries=QUICK).commit(commit)
    assert messages(settings) == [1, 2]
    # A new execution puts the marker back into the history.
    owned(settings).claim()
    newest = load(settings).current_snapshot()
    assert newest is not None
    assert newest.summary is not None
    assert newest.summary[iceberg_catalog.MARKER_PROPERTY] == commit.marker.to_json()


def test_after_a_rollback_the_marker_is_that_of_the_rows(settings: Settings) -> None:
    committer = owned(settings)
    first = pending(settings, [failure(1)])
    committer.claim()
    committer.commit(first)
    snapshot = load(settings).current_snapshot()
    assert snapshot is not None
    committer.commit(pending(settings, [failure(2)], after=first.marker))
    load(settings).manage_snapshots().rollback_to_snapshot(snapshot.snapshot_id).commit()
    assert messages(settings) == [1]
    assert iceberg_catalog.marker(settings, "bronze.failures") == first.marker


def test_rows_are_replaced_by_key_in_one_snapshot(settings: Settings) -> None:
    committer = Committer(load(settings, "silver.metrics"), key_columns=SILVER_METRICS.key_columns)

    def commit(*changes: Change) -> int:
        before = len(load(settings, "silver.metrics").metadata.snapshots)
        committer.commit(pending(settings, list(changes), spec=SILVER_METRICS))
        return len(load(settings, "silver.metrics").metadata.snapshots) - before

    assert commit(window("git", 1), window("web", 1)) == 1
    assert commit(window("git", 2), window("api", 1), window("git", 3)) == 1
    assert metrics(settings) == {"git": 3, "web": 1, "api": 1}
    # A deletion alone, of rows in two files and of one that does not exist.
    assert commit(Change(None, (NOON, "web")), Change(None, (NOON, "git")), Change(None, (NOON, "none"))) == 1
    assert metrics(settings) == {"api": 1}
    # Nothing to delete: no snapshot, also not on the way to an empty table and back.
    assert commit(Change(None, (NOON, "none"))) == 0
    assert commit(Change(None, (NOON, "api"))) == 1
    assert metrics(settings) == {}
    assert commit(window("git", 9)) == 1
    assert metrics(settings) == {"git": 9}


def test_deleting_from_a_table_that_was_never_written_changes_nothing(settings: Settings) -> None:
    committer = Committer(load(settings, "silver.metrics"), key_columns=SILVER_METRICS.key_columns)
    committer.commit(pending(settings, [Change(None, (NOON, "git"))], spec=SILVER_METRICS))
    assert load(settings, "silver.metrics").metadata.snapshots == []


def test_a_replacement_is_made_against_the_table_as_it_is_after_a_conflict(settings: Settings) -> None:
    committer = Committer(load(settings, "silver.metrics"), key_columns=SILVER_METRICS.key_columns, retries=QUICK)
    committer.commit(pending(settings, [window("git", 1), window("web", 1)], spec=SILVER_METRICS))
    # The other writer compacts: the file that the committer knows is no longer part of the table.
    other = load(settings, "silver.metrics")
    other.overwrite(other.scan().to_arrow())
    committer.commit(pending(settings, [window("git", 2)], spec=SILVER_METRICS))
    assert metrics(settings) == {"git": 2, "web": 1}


def test_manifests_are_merged_also_when_every_commit_replaces(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.iceberg_commit.MANIFESTS_UNTIL_MERGE", 4)
    with load(settings, "silver.metrics").transaction() as transaction:
        transaction.set_properties({"commit.manifest.min-count-to-merge": "3"})
    committer = Committer(load(settings, "silver.metrics"), key_columns=SILVER_METRICS.key_columns)
    for number in range(9):
        committer.commit(
            pending(settings, [window("git", number), window(f"source-{number}", 1)], spec=SILVER_METRICS)
        )
    table = load(settings, "silver.metrics")
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(table.io)) <= 6
    assert metrics(settings) == {"git": 8, **{f"source-{number}": 1 for number in range(9)}}
