"""The commit loop against a real catalog: conflicts, lost responses, foreign snapshots, other executions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from botocore.exceptions import EndpointConnectionError
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.table import Table

from core.errors import CommitError, FencedError, PkmError, SnapshotError, UnreachableError
from core.markers import Marker
from core.records import Position
from core.recovery import ownership
from core.settings import Settings
from core.telemetry import COMMITS
from sinks import iceberg_catalog
from sinks.iceberg_commit import Committer, PendingCommit, Retries
from sinks.iceberg_epoch import Epoch
from sinks.iceberg_owner import Owner
from sinks.iceberg_rows import Change
from sinks.iceberg_tables import BRONZE_FAILURES, SILVER_METRICS, TableSpec

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
QUICK = Retries(attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.02)


@pytest.fixture(autouse=True)
def tables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the tables that are used here: creating them takes most of the time of a test.
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_FAILURES, SILVER_METRICS))
    iceberg_catalog.create_tables(settings)


def load(settings: Settings, identifier: str = "bronze.failures") -> Table:
    return iceberg_catalog.load(settings).load_table(identifier)


def failure(number: int) -> Change:
    position = Position("shard", number)
    row = {
        "event_id": None,
        "step": "parse",
        "error": "ValueError",
        "message": str(number),
        "arrival_time": NOON,
        "shard_id": "shard",
        "sequence_number": str(number),
        "subsequence_number": 0,
        "s3_key": None,
        "payload": b"",
        "failed_at": NOON,
    }
    return Change(row, position=position)


def window(source_type: str, count: int) -> Change:
    row = {
        "window_start": NOON,
        "window_end": NOON,
        "source_type": source_type,
        "count": count,
        "avg_words": 1.0,
        "event_ids": ["a"],
    }
    return Change(row, key=(NOON, source_type))


def pending(
    settings: Settings, changes: list[Change], *, after: Marker | None = None, spec: TableSpec = BRONZE_FAILURES
) -> PendingCommit:
    epoch = Epoch(load(settings, spec.identifier), spec, flush_bytes=1 << 20)
    for change in changes:
        epoch.add(change)
    write, _ = epoch.seal(after or Marker())
    assert write is not None
    return write()


def messages(settings: Settings) -> list[int]:
    found = iceberg_catalog.scan(settings, "bronze.failures", columns=["message"])
    return sorted(int(message) for message in found["message"].to_pylist())


class Faults:
    """Stands between a committer and its catalog: does what a fault of the network does, then gets out of the way."""

    def __init__(self, table: Table, *, before: list[Exception] | None = None, after: list[Exception] | None = None):
        self._commit = table.catalog.commit_table
        self._before, self._after = before or [], after or []
        self.calls = 0
        table.catalog.commit_table = self.commit_table  # type: ignore[method-assign]

    def commit_table(self, *arguments: Any) -> Any:
        self.calls += 1
        if self._before:
            raise self._before.pop(0)
        response = self._commit(*arguments)
        if self._after:
            raise self._after.pop(0)
        return response


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


def owned(settings: Settings, identifier: str = "bronze.failures", flow: str = "knowledge") -> Committer:
    spec = SILVER_METRICS if identifier == "silver.metrics" else BRONZE_FAILURES
    table = load(settings, identifier)
    return Committer(table, key_columns=spec.key_columns, retries=QUICK, owner=Owner(flow))


def test_an_execution_whose_table_was_claimed_by_a_newer_one_commits_nothing_more(settings: Settings) -> None:
    zombie, newer = owned(settings), owned(settings)
    zombie.claim()
    first = pending(settings, [failure(1)])
    zombie.commit(first)
    newer.claim()
    with pytest.raises(FencedError, match=r"bronze\.failures was claimed by a newer execution of flow knowledge"):
        zombie.commit(pending(settings, [failure(2)], after=first.marker))
    assert messages(settings) == [1]
    newer.commit(pending(settings, [failure(2)], after=first.marker))
    assert messages(settings) == [1, 2]


@pytest.mark.parametrize("moment", ["before its first commit", "after others"])
def test_a_claim_stops_a_commit_that_has_already_looked_whose_the_table_is(settings: Settings, moment: str) -> None:
    # Rows without positions: nothing but the owner tells the two executions apart.
    zombie_table = load(settings, "silver.metrics")
    zombie = Committer(zombie_table, key_columns=SILVER_METRICS.key_columns, retries=QUICK, owner=Owner("knowledge"))
    zombie.claim()
    if moment == "after others":
        zombie.commit(pending(settings, [window("git", 1)], spec=SILVER_METRICS))
    late = pending(settings, [window("git", 2)], spec=SILVER_METRICS)
    newer = owned(settings, "silver.metrics")
    call = zombie_table.catalog.commit_table

    def paused(*arguments: Any) -> Any:
        zombie_table.catalog.commit_table = call  # type: ignore[method-assign]
        newer.claim()
        newer.commit(pending(settings, [window("git", 3)], spec=SILVER_METRICS))
        return call(*arguments)

    zombie_table.catalog.commit_table = paused  # type: ignore[method-assign]
    with pytest.raises(FencedError, match=r"silver\.metrics was claimed by a newer execution"):
        zombie.commit(late)
    assert metrics(settings) == {"git": 3}


def test_a_commit_during_which_the_process_slept_for_longer_than_it_would_retry_is_fenced_too(
    settings: Settings,
) -> None:
    table = load(settings)
    zombie = Committer(table, key_columns=(), retries=Retries(seconds=0.0), owner=Owner("knowledge"))
    zombie.claim()
    late = pending(settings, [failure(1)])
    owned(settings).claim()
    with pytest.raises(FencedError, match="claimed by a newer execution"):
        zombie.commit(late)


def test_a_claim_whose_response_is_lost_is_not_repeated(settings: Settings) -> None:
    table = load(settings)
    faults = Faults(table, after=[CommitStateUnknownException("gateway timeout")])
    committer = Committer(table, key_columns=(), retries=QUICK, owner=Owner("knowledge"))
    committer.claim()
    assert faults.calls == 1
    assert len(load(settings).metadata.snapshots) == 1
    committer.commit(pending(settings, [failure(1)]))
    assert messages(settings) == [1]


def test_a_process_that_is_replaced_between_its_question_and_its_claim_takes_nothing(settings: Settings) -> None:
    newer = owned(settings)
    asked: list[str] = []

    def replaced() -> None:
        asked.append("asked")
        if len(asked) > 1:
            raise FencedError("a newer execution claimed the flow")
        ownership.release(replaced)
        newer.claim()
        ownership.hold(replaced)

    late = owned(settings)
    ownership.hold(replaced)
    try:
        with pytest.raises(FencedError, match="newer execution claimed"):
            late.claim()
    finally:
        ownership.release(replaced)
    newer.commit(pending(settings, [failure(1)]))
    assert messages(settings) == [1]


@pytest.mark.parametrize("fault", [UnreachableError("S3 is away"), SnapshotError("the manifest is damaged")])
def test_a_claim_that_can_not_ask_says_why_itself(settings: Settings, fault: PkmError) -> None:
    def unsure() -> None:
        raise fault

    ownership.hold(unsure)
    try:
        with pytest.raises(type(fault), match=str(fault)):
            owned(settings).claim()
    finally:
        ownership.release(unsure)


def test_flows_do_not_fence_each_other(settings: Settings) -> None:
    one, other = owned(settings), owned(settings, flow="backfill")
    one.claim()
    other.claim()
    first = pending(settings, [failure(1)])
    one.commit(first)
    other.commit(pending(settings, [failure(2)], after=first.marker))
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


def metrics(settings: Settings) -> dict[str, int]:
    rows = iceberg_catalog.scan(settings, "silver.metrics").to_pylist()
    assert len(rows) == len({row["source_type"] for row in rows})
    return {row["source_type"]: row["count"] for row in rows}


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
