"""Whose a table is: an execution that was replaced commits nothing more, and takes nothing back."""

from __future__ import annotations

from typing import Any

import pytest
from pyiceberg.exceptions import CommitStateUnknownException

from core.errors import FencedError, PkmError, SnapshotError, UnreachableError
from core.recovery import ownership
from core.settings import Settings
from iceberg_commits import QUICK, Faults, failure, load, messages, metrics, owned, pending, window
from sinks.iceberg_commit import Committer, Retries
from sinks.iceberg_owner import Owner
from sinks.iceberg_tables import SILVER_METRICS

pytestmark = pytest.mark.usefixtures("tables")


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
