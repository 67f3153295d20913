"""Snapshots on S3: what is published is what is restored, by one execution at a time."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import obstore
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource

from core import aws
from core.errors import FencedError, MissingError, SnapshotError, UnreachableError
from core.recovery import FlowShape, Manifest, Snapshot, SnapshotStore, shape_of
from core.recovery.fit import changed_steps
from core.recovery.manifest import retained
from core.settings import Settings
from snapshots import CONTENT, newest_of, object_names, overwrite, publish_one, with_changes, with_key


@pytest.mark.parametrize("signed", [False, True])
def test_a_published_snapshot_is_what_the_next_execution_gets(settings: Settings, signed: bool) -> None:
    settings = with_key(settings) if signed else settings
    store = SnapshotStore(settings, flow="counting")
    assert store.manifest() is None
    assert store.claim() == Manifest("counting", settings.stream, 1, revision=1)
    before = datetime.now(UTC)
    published = publish_one(store)
    claimed = store.claim()
    assert (claimed.execution, claimed.newest) == (2, published)
    assert store.content(published) == CONTENT
    assert (published.execution, published.counter, published.epoch) == (1, 1, 7)
    assert (published.size_bytes, published.digest_algorithm) == (len(CONTENT), "hmac-sha256" if signed else "sha256")
    assert before <= published.created_at <= datetime.now(UTC)
    assert object_names(settings) == {"manifest.json", published.name}


def test_flows_do_not_see_each_other(settings: Settings) -> None:
    SnapshotStore(settings, flow="counting").claim()
    assert SnapshotStore(settings, flow="other").manifest() is None
    with pytest.raises(ValueError, match="can't name a flow"):
        SnapshotStore(settings, flow="../counting")


def test_a_stream_of_another_name_is_refused_with_both_names(settings: Settings) -> None:
    SnapshotStore(settings, flow="counting").claim()
    other = SnapshotStore(with_changes(settings, stream="elsewhere"), flow="counting")
    with pytest.raises(SnapshotError) as raised:
        other.claim()
    assert f'"{settings.stream}"' in str(raised.value)
    assert '"elsewhere"' in str(raised.value)
    assert f"set PKM_STREAM={settings.stream}" in str(raised.value)


def test_an_older_execution_is_fenced(settings: Settings) -> None:
    old, new = SnapshotStore(settings, flow="counting"), SnapshotStore(settings, flow="counting")
    old.claim()
    old.check(1)
    new.claim()
    with pytest.raises(FencedError, match="execution 1 of flow counting was superseded: execution 2"):
        old.check(1)
    with pytest.raises(FencedError):
        publish_one(old, execution=1)
    assert publish_one(new, execution=2).execution == 2
    assert object_names(settings) == {"manifest.json", newest_of(new).name}


def test_only_the_newest_snapshots_are_kept(settings: Settings) -> None:
    settings = with_changes(settings, snapshot_retention=3)
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    published = [publish_one(store, CONTENT + bytes([number])) for number in range(5)]
    manifest = store.manifest()
    assert manifest is not None
    assert list(manifest.snapshots) == published[-3:]
    assert [one.counter for one in published] == [1, 2, 3, 4, 5]
    assert object_names(settings) == {"manifest.json", *(one.name for one in published[-3:])}


def test_an_expired_snapshot_that_is_already_gone_is_no_error(settings: Settings) -> None:
    settings = with_changes(settings, snapshot_retention=1)
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    first = publish_one(store)
    obstore.delete(aws.object_store(settings), f"snapshots/counting/{first.name}")
    second = publish_one(store)
    assert object_names(settings) == {"manifest.json", second.name}


def test_publishers_that_race_lose_no_snapshot(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    start = threading.Barrier(4)

    def publish(number: int) -> set[str]:
        start.wait()
        return {publish_one(SnapshotStore(settings, flow="counting"), bytes([number]) * 9).id for _ in range(3)}

    with ThreadPoolExecutor(4) as pool:
        published = set().union(*pool.map(publish, range(4)))
    manifest = store.manifest()
    assert manifest is not None
    assert {one.id for one in manifest.snapshots} == published
    assert len(published) == 12
    for snapshot in manifest.snapshots:
        assert len(store.content(snapshot)) == 9


def test_executions_that_start_at_once_get_different_numbers(settings: Settings) -> None:
    start = threading.Barrier(5)

    def claim(_: int) -> int:
        store = SnapshotStore(settings, flow="counting")
        start.wait()
        return store.claim().execution

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(claim, range(5))) == [1, 2, 3, 4, 5]


def test_an_execution_and_its_successor_race_and_only_one_state_survives(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    start = threading.Barrier(2)

    def publish() -> int:
        start.wait()
        number = 0
        while True:
            try:
                publish_one(SnapshotStore(settings, flow="counting"))
            except FencedError:
                return number
            number += 1

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        start.wait()
        claimed = store.claim()
        assert publishing.result(timeout=60) == len(claimed.snapshots)
    manifest = store.manifest()
    assert manifest == claimed


def test_what_was_stored_but_never_published_is_swept_by_the_next_claim(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    kept = publish_one(store)
    overwrite(settings, "000001-000002-0123456789ab.sqlite", b"left over")
    overwrite(settings, "notes.txt", b"somebody's own")
    store.claim()
    assert object_names(settings) == {"manifest.json", kept.name, "notes.txt"}


def test_a_savepoint_is_kept_by_its_name(settings: Settings) -> None:
    settings = with_changes(settings, snapshot_retention=2)
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    with pytest.raises(SnapshotError, match="has no snapshot yet"):
        store.save("before-upgrade")
    saved = dataclasses.replace(publish_one(store), savepoint="before-upgrade")
    assert store.save("before-upgrade") == saved
    with pytest.raises(SnapshotError, match='saved as "before-upgrade" already'):
        store.save("again")
    later = [publish_one(store, bytes([number])) for number in range(4)]
    with pytest.raises(SnapshotError, match='has a snapshot "before-upgrade" already'):
        store.save("before-upgrade")
    with pytest.raises(SnapshotError, match="can't name a savepoint"):
        store.save("../x")
    manifest = store.manifest()
    assert manifest is not None
    assert manifest.snapshots == (saved, *later[-2:])
    store.check(1)  # saving fenced nobody
    assert store.content(saved) == CONTENT
    assert store.choose("before-upgrade").newest == saved
    store.claim()
    store.forget("before-upgrade")
    with pytest.raises(SnapshotError, match='no savepoint "before-upgrade": it has none'):
        store.forget("before-upgrade")
    newest = [publish_one(store, bytes([number]), execution=3) for number in range(9, 12)][-2:]
    assert object_names(settings) == {"manifest.json", *(one.name for one in newest)}


def test_old_snapshots_are_dropped_but_for_the_newest(settings: Settings) -> None:
    now = datetime(2026, 11, 23, 8, tzinfo=UTC)
    ages = [timedelta(hours=hours) for hours in (90, 80, 60, 49, 47, 2)]
    listed = tuple(
        Snapshot(f"{number}", 1, number, 7, now - age, 1, "sha256", "", "", savepoint="kept" if number == 1 else None)
        for number, age in enumerate(ages)
    )

    def kept(count: int, hours: int, these: tuple[Snapshot, ...] = listed) -> list[str]:
        return [one.id for one in retained(these, now=now, count=count, age=timedelta(hours=hours))]

    assert kept(20, 48) == ["1", "4", "5"]
    assert kept(1, 48) == ["1", "5"]
    assert kept(20, 1) == ["1", "5"]
    assert kept(20, 1000) == ["0", "1", "2", "3", "4", "5"]
    # A chosen one is the last, however old it is.
    assert kept(1, 1, (*listed[1:], listed[0])) == ["1", "0"]


SHAPE = FlowShape(("counting.a.fold", "counting.in"), 4)


def test_a_snapshot_of_other_steps_is_refused_and_fences_nobody(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim(SHAPE)
    snapshot = publish_one(store)
    assert snapshot.shape == SHAPE
    changed = FlowShape(("counting.b.fold", "counting.in"), 4)
    with pytest.raises(SnapshotError) as raised:
        store.claim(changed)
    for part in ('the snapshot has "counting.a.fold"', 'this flow has "counting.b.fold"', snapshot.name):
        assert part in str(raised.value)
    store.check(1)
    with pytest.raises(SnapshotError, match="other steps"):
        store.choose(snapshot.id, changed)
    accepting = SnapshotStore(with_changes(settings, accept_changed_steps=True), flow="counting")
    assert accepting.claim(changed).newest == snapshot
    # What was restored with force is not asked again.
    assert store.choose(snapshot.id, changed, force=True).execution == 3
    assert store.claim(changed).execution == 4
    # A flow whose shape nobody told, such as an older one's, is not compared.
    assert store.claim().execution == 5


def test_another_number_of_source_partitions_is_refused_also_with_force(settings: Settings) -> None:
    store = SnapshotStore(with_changes(settings, accept_changed_steps=True), flow="counting")
    store.claim(SHAPE)
    snapshot = publish_one(store)
    other = dataclasses.replace(SHAPE, source_partitions=8)
    for use in (lambda: store.claim(other), lambda: store.choose(snapshot.id, other, force=True)):
        with pytest.raises(SnapshotError, match="4 source partitions, not 8: set PKM_SOURCE_PARTITIONS=4"):
            use()
    store.check(1)


def test_a_savepoint_of_another_stream_or_a_damaged_one_is_not_restored(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = publish_one(store)
    other = SnapshotStore(with_changes(settings, stream="elsewhere"), flow="counting")
    with pytest.raises(SnapshotError, match='PKM_STREAM is "elsewhere"'):
        other.choose(snapshot.id, force=True)
    overwrite(settings, snapshot.name, CONTENT[:-1] + b"x")
    with pytest.raises(SnapshotError, match="was not opened"):
        store.choose(snapshot.id, force=True)
    store.check(1)


def test_the_shape_of_a_flow_is_its_steps_with_state() -> None:
    graph = Dataflow("counting")
    numbers = op.input("numbers", graph, TestingSource([1]))
    keyed = op.key_on("key", numbers, str)
    counts = op.stateful_map("count", keyed, lambda count, _: (count, count))
    op.output("result", counts, TestingSink([]))
    shape = shape_of(graph, source_partitions=3)
    assert shape.source_partitions == 3
    assert shape.steps == (
        "counting.count.stateful_flat_map.stateful.stateful_batch",
        "counting.numbers",
        "counting.result",
    )
    assert changed_steps(shape, shape) is None
    assert changed_steps(FlowShape(), shape) is None
    many = FlowShape(tuple(f"counting.{number}" for number in range(9)), 3)
    assert "and 3 more" in str(changed_steps(many, shape))


def test_a_chosen_savepoint_is_resumed_next_and_no_other_is_lost(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    one, two, three = (publish_one(store, bytes([number])) for number in range(3))
    chosen = store.choose(two.id)
    assert chosen.snapshots == (one, three, two)
    assert store.claim().newest == two
    with pytest.raises(FencedError):
        store.check(1)
    with pytest.raises(SnapshotError, match=f'no snapshot "nonsense": it has {one.id}'):
        store.choose("nonsense")
    with pytest.raises(SnapshotError, match="it has none"):
        SnapshotStore(settings, flow="never").choose("nonsense")


def test_a_bucket_that_does_not_exist_is_named(settings: Settings) -> None:
    store = SnapshotStore(with_changes(settings, bucket="nowhere"), flow="counting")
    with pytest.raises(MissingError, match='no bucket "nowhere": create it with `pkm init`'):
        store.claim()


def test_an_endpoint_that_does_not_answer_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=f"s3://{settings.bucket}/snapshots/counting/") as raised:
        SnapshotStore(with_changes(settings, retry_seconds=1), flow="counting").claim()
    assert "\n" not in str(raised.value)
