"""Snapshots on S3: what is published is what is restored, by one execution at a time; nothing forged is opened."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import obstore
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from core import aws
from core.errors import FencedError, MissingError, SnapshotError, UnreachableError
from core.recovery import FlowShape, Manifest, Snapshot, SnapshotStore, shape_of
from core.recovery.fit import changed_steps
from core.recovery.manifest import Seal, from_json, retained, to_json, unknown_to
from core.settings import Settings

CONTENT = b"SQLite format 3\x00" + bytes(range(256)) * 40


def _with(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


def _signing(settings: Settings, key: str = "open sesame") -> Settings:
    return _with(settings, snapshot_key=SecretStr(key))


def _publish(store: SnapshotStore, content: bytes = CONTENT, *, execution: int = 1, epoch: int = 7) -> Snapshot:
    return store.publish(content, execution=execution, epoch=epoch, state_digest="aa")


def _newest(store: SnapshotStore) -> Snapshot:
    manifest = store.manifest()
    assert manifest is not None
    assert manifest.newest is not None
    return manifest.newest


def _objects(settings: Settings, flow: str = "counting") -> set[str]:
    batches = obstore.list(aws.object_store(settings), prefix=f"snapshots/{flow}")
    return {meta["path"].rpartition("/")[2] for batch in batches for meta in batch}


def _overwrite(settings: Settings, name: str, content: bytes) -> None:
    obstore.put(aws.object_store(settings), f"snapshots/counting/{name}", content)


def _read(settings: Settings, name: str) -> bytes:
    return bytes(obstore.get(aws.object_store(settings), f"snapshots/counting/{name}").bytes())


@pytest.mark.parametrize("signed", [False, True])
def test_a_published_snapshot_is_what_the_next_execution_gets(settings: Settings, signed: bool) -> None:
    settings = _signing(settings) if signed else settings
    store = SnapshotStore(settings, flow="counting")
    assert store.manifest() is None
    assert store.claim() == Manifest("counting", settings.stream, 1, revision=1)
    before = datetime.now(UTC)
    published = _publish(store)
    claimed = store.claim()
    assert (claimed.execution, claimed.newest) == (2, published)
    assert store.content(published) == CONTENT
    assert (published.execution, published.counter, published.epoch) == (1, 1, 7)
    assert (published.size_bytes, published.digest_algorithm) == (len(CONTENT), "hmac-sha256" if signed else "sha256")
    assert before <= published.created_at <= datetime.now(UTC)
    assert _objects(settings) == {"manifest.json", published.name}


def test_flows_do_not_see_each_other(settings: Settings) -> None:
    SnapshotStore(settings, flow="counting").claim()
    assert SnapshotStore(settings, flow="other").manifest() is None
    with pytest.raises(ValueError, match="can't name a flow"):
        SnapshotStore(settings, flow="../counting")


@pytest.mark.parametrize("signed", [False, True])
def test_a_flipped_byte_is_refused(settings: Settings, signed: bool) -> None:
    settings = _signing(settings) if signed else settings
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = _publish(store)
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    _overwrite(settings, snapshot.name, bytes(damaged))
    with pytest.raises(SnapshotError, match=rf"{snapshot.name} does not match its (hmac-)?sha256 digest"):
        store.content(snapshot)
    _overwrite(settings, snapshot.name, CONTENT[:-1])
    with pytest.raises(SnapshotError, match=f"has {len(CONTENT) - 1} bytes instead of {len(CONTENT)}"):
        store.content(snapshot)


def test_a_missing_snapshot_is_named(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = _publish(store)
    obstore.delete(aws.object_store(settings), f"snapshots/counting/{snapshot.name}")
    with pytest.raises(SnapshotError, match=rf"{snapshot.name} is gone although the manifest lists it"):
        store.content(snapshot)


def test_another_key_is_refused_and_does_not_fence_the_running_execution(settings: Settings) -> None:
    store = SnapshotStore(_signing(settings), flow="counting")
    store.claim()
    _publish(store)
    stranger = SnapshotStore(_signing(settings, "guess"), flow="counting")
    with pytest.raises(SnapshotError, match="check PKM_SNAPSHOT_KEY"):
        stranger.claim()
    with pytest.raises(SnapshotError, match="check PKM_SNAPSHOT_KEY"):
        stranger.manifest()
    store.check(1)


def test_without_the_key_a_signed_snapshot_is_refused(settings: Settings) -> None:
    store = SnapshotStore(_signing(settings), flow="counting")
    store.claim()
    snapshot = _publish(store)
    keyless = SnapshotStore(settings, flow="counting")
    with pytest.raises(SnapshotError, match=r"manifest.json is signed: set PKM_SNAPSHOT_KEY"):
        keyless.claim()
    with pytest.raises(SnapshotError, match="sqlite is signed: set PKM_SNAPSHOT_KEY"):
        keyless.content(snapshot)


def test_with_a_key_an_unsigned_snapshot_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = _publish(store)
    signing = SnapshotStore(_signing(settings), flow="counting")
    with pytest.raises(SnapshotError, match=r"manifest.json is not signed, but PKM_SNAPSHOT_KEY is set"):
        signing.claim()
    with pytest.raises(SnapshotError, match="sqlite is not signed, but PKM_SNAPSHOT_KEY is set"):
        signing.content(snapshot)


def test_a_signed_snapshot_can_not_stand_in_for_another(settings: Settings) -> None:
    signing = _signing(settings)
    store = SnapshotStore(signing, flow="counting")
    store.claim()
    first, second = _publish(store, b"old state"), _publish(store, b"new state")
    swapped = dataclasses.replace(second, digest=first.digest)
    _overwrite(signing, second.name, b"old state")
    with pytest.raises(SnapshotError, match="does not match"):
        store.content(swapped)


def test_a_stream_of_another_name_is_refused_with_both_names(settings: Settings) -> None:
    SnapshotStore(settings, flow="counting").claim()
    other = SnapshotStore(_with(settings, stream="elsewhere"), flow="counting")
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
        _publish(old, execution=1)
    assert _publish(new, execution=2).execution == 2
    assert _objects(settings) == {"manifest.json", _newest(new).name}


def test_only_the_newest_snapshots_are_kept(settings: Settings) -> None:
    settings = _with(settings, snapshot_retention=3)
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    published = [_publish(store, CONTENT + bytes([number])) for number in range(5)]
    manifest = store.manifest()
    assert manifest is not None
    assert list(manifest.snapshots) == published[-3:]
    assert [one.counter for one in published] == [1, 2, 3, 4, 5]
    assert _objects(settings) == {"manifest.json", *(one.name for one in published[-3:])}


def test_an_expired_snapshot_that_is_already_gone_is_no_error(settings: Settings) -> None:
    settings = _with(settings, snapshot_retention=1)
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    first = _publish(store)
    obstore.delete(aws.object_store(settings), f"snapshots/counting/{first.name}")
    second = _publish(store)
    assert _objects(settings) == {"manifest.json", second.name}


def test_publishers_that_race_lose_no_snapshot(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    start = threading.Barrier(4)

    def publish(number: int) -> set[str]:
        start.wait()
        return {_publish(SnapshotStore(settings, flow="counting"), bytes([number]) * 9).id for _ in range(3)}

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
                _publish(SnapshotStore(settings, flow="counting"))
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
    kept = _publish(store)
    _overwrite(settings, "000001-000002-0123456789ab.sqlite", b"left over")
    _overwrite(settings, "notes.txt", b"somebody's own")
    store.claim()
    assert _objects(settings) == {"manifest.json", kept.name, "notes.txt"}


@pytest.mark.parametrize("signed", [False, True])
def test_an_old_manifest_that_was_put_back_is_refused_by_the_next_start(settings: Settings, signed: bool) -> None:
    settings = _signing(settings) if signed else settings
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    _publish(store)
    old = _read(settings, "manifest.json")
    newest = [_publish(store, bytes([number])) for number in range(3)][-1]
    _overwrite(settings, "manifest.json", old)
    with pytest.raises(SnapshotError, match=rf"manifest.json is older than snapshots/counting/{newest.name}"):
        SnapshotStore(settings, flow="counting").claim()
    obstore.delete(aws.object_store(settings), "snapshots/counting/manifest.json")
    with pytest.raises(SnapshotError, match=r"manifest.json is gone, but there is"):
        SnapshotStore(settings, flow="counting").claim()


def test_a_manifest_of_an_earlier_execution_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    first = _publish(store)
    old = _read(settings, "manifest.json")
    store.claim()
    _publish(store, execution=2)
    _overwrite(settings, "manifest.json", old)
    later = SnapshotStore(settings, flow="counting")
    with pytest.raises(SnapshotError, match="is older than"):
        later.claim()
    with pytest.raises(SnapshotError, match="is older than"):
        later.choose(first.id)
    # A person who did it on purpose can say so; then no number of an execution is given twice.
    assert later.choose(first.id, force=True).execution == 3
    assert later.claim().newest == first


def test_an_old_manifest_is_noticed_while_the_flow_runs(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    _publish(store)
    old = _read(settings, "manifest.json")
    _publish(store)
    _overwrite(settings, "manifest.json", old)
    for use in (lambda: _publish(store), lambda: store.check(1)):
        with pytest.raises(SnapshotError, match="has revision 2, but this process has seen 3"):
            use()


def test_a_start_beside_a_running_execution_is_no_alarm(settings: Settings) -> None:
    SnapshotStore(settings, flow="counting").claim()

    def publish(execution: int) -> None:
        store = SnapshotStore(settings, flow="counting")
        with contextlib.suppress(FencedError):
            while True:
                _publish(store, execution=execution)

    with ThreadPoolExecutor(1) as pool:
        for execution in range(1, 6):
            publishing = pool.submit(publish, execution)
            time.sleep(0.1)
            assert SnapshotStore(settings, flow="counting").claim().execution == execution + 1
            publishing.result(timeout=60)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.booleans(), st.data())
def test_only_a_newer_manifest_explains_objects_beyond_the_next(
    published: list[int], orphan: bool, data: st.DataObject
) -> None:
    """Executions publish some snapshots each, perhaps one more that is never listed; then an old manifest is back."""
    manifests, names = [Manifest("counting", "stream", 0)], []
    for execution, count in enumerate(published, start=1):
        manifests.append(dataclasses.replace(manifests[-1], execution=execution))
        for counter in range(1, count + 1):
            one = Snapshot("ab", execution, counter, 1, datetime.now(UTC), 1, "sha256", "", "")
            names.append(one.name)
            manifests.append(dataclasses.replace(manifests[-1], snapshots=(*manifests[-1].snapshots, one)))
    if orphan:
        names.append(f"{len(published):06d}-{published[-1] + 1:06d}-cd.sqlite")
    assert unknown_to(manifests[-1], names) is None
    old = data.draw(st.integers(0, len(manifests) - 2))
    last = manifests[-1].newest
    assert last is not None
    known = manifests[old].execution == last.execution and last.counter - sum(
        one.execution == last.execution for one in manifests[old].snapshots
    )
    beyond = manifests[old].execution < last.execution or (known or 0) + orphan > 1
    assert (unknown_to(manifests[old], names) is not None) == beyond


def test_a_manifest_deleted_under_a_running_flow_is_written_anew(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    _publish(store)
    obstore.delete(aws.object_store(settings), "snapshots/counting/manifest.json")
    store.check(1)
    snapshot = _publish(store)
    assert _newest(store) == snapshot


def test_a_savepoint_is_kept_by_its_name(settings: Settings) -> None:
    settings = _with(settings, snapshot_retention=2)
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    with pytest.raises(SnapshotError, match="has no snapshot yet"):
        store.save("before-upgrade")
    saved = dataclasses.replace(_publish(store), savepoint="before-upgrade")
    assert store.save("before-upgrade") == saved
    with pytest.raises(SnapshotError, match='saved as "before-upgrade" already'):
        store.save("again")
    later = [_publish(store, bytes([number])) for number in range(4)]
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
    newest = [_publish(store, bytes([number]), execution=3) for number in range(9, 12)][-2:]
    assert _objects(settings) == {"manifest.json", *(one.name for one in newest)}


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
    snapshot = _publish(store)
    assert snapshot.shape == SHAPE
    changed = FlowShape(("counting.b.fold", "counting.in"), 4)
    with pytest.raises(SnapshotError) as raised:
        store.claim(changed)
    for part in ('the snapshot has "counting.a.fold"', 'this flow has "counting.b.fold"', snapshot.name):
        assert part in str(raised.value)
    store.check(1)
    with pytest.raises(SnapshotError, match="other steps"):
        store.choose(snapshot.id, changed)
    accepting = SnapshotStore(_with(settings, accept_changed_steps=True), flow="counting")
    assert accepting.claim(changed).newest == snapshot
    # What was restored with force is not asked again.
    assert store.choose(snapshot.id, changed, force=True).execution == 3
    assert store.claim(changed).execution == 4
    # A flow whose shape nobody told, such as an older one's, is not compared.
    assert store.claim().execution == 5


def test_another_number_of_source_partitions_is_refused_also_with_force(settings: Settings) -> None:
    store = SnapshotStore(_with(settings, accept_changed_steps=True), flow="counting")
    store.claim(SHAPE)
    snapshot = _publish(store)
    other = dataclasses.replace(SHAPE, source_partitions=8)
    for use in (lambda: store.claim(other), lambda: store.choose(snapshot.id, other, force=True)):
        with pytest.raises(SnapshotError, match="4 source partitions, not 8: set PKM_SOURCE_PARTITIONS=4"):
            use()
    store.check(1)


def test_a_savepoint_of_another_stream_or_a_damaged_one_is_not_restored(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = _publish(store)
    other = SnapshotStore(_with(settings, stream="elsewhere"), flow="counting")
    with pytest.raises(SnapshotError, match='PKM_STREAM is "elsewhere"'):
        other.choose(snapshot.id, force=True)
    _overwrite(settings, snapshot.name, CONTENT[:-1] + b"x")
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
    one, two, three = (_publish(store, bytes([number])) for number in range(3))
    chosen = store.choose(two.id)
    assert chosen.snapshots == (one, three, two)
    assert store.claim().newest == two
    with pytest.raises(FencedError):
        store.check(1)
    with pytest.raises(SnapshotError, match=f'no snapshot "nonsense": it has {one.id}'):
        store.choose("nonsense")
    with pytest.raises(SnapshotError, match="it has none"):
        SnapshotStore(settings, flow="never").choose("nonsense")


def test_a_manifest_that_is_no_manifest_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    for content in (b"", b"[]", b"{", b'{"manifest": 1, "digest_algorithm": "sha256"}'):
        _overwrite(settings, "manifest.json", content)
        with pytest.raises(SnapshotError, match=r"manifest.json can't be read"):
            store.claim()


def test_an_unsigned_manifest_that_was_edited_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    document = orjson.loads(_read(settings, "manifest.json"))
    document["manifest"]["execution"] = 41
    _overwrite(settings, "manifest.json", orjson.dumps(document))
    with pytest.raises(SnapshotError, match="does not match its sha256 digest"):
        store.claim()


def test_a_bucket_that_does_not_exist_is_named(settings: Settings) -> None:
    store = SnapshotStore(_with(settings, bucket="nowhere"), flow="counting")
    with pytest.raises(MissingError, match='no bucket "nowhere": create it with `pkm init`'):
        store.claim()


def test_an_endpoint_that_does_not_answer_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=f"s3://{settings.bucket}/snapshots/counting/") as raised:
        SnapshotStore(_with(settings, retry_seconds=1), flow="counting").claim()
    assert "\n" not in str(raised.value)


shapes = st.builds(FlowShape, st.lists(st.text(max_size=9), max_size=3).map(tuple), st.integers(0, 1024))
snapshots = st.builds(
    Snapshot,
    id=st.text("0123456789abcdef", min_size=12, max_size=12),
    execution=st.integers(1, 10**6),
    counter=st.integers(1, 10**6),
    epoch=st.integers(0, 2**53),
    created_at=st.datetimes(timezones=st.just(UTC)),
    size_bytes=st.integers(0, 2**40),
    digest_algorithm=st.sampled_from(["sha256", "hmac-sha256"]),
    digest=st.text(max_size=8),
    state_digest=st.text(max_size=8),
    shape=shapes,
    savepoint=st.none() | st.text(max_size=8),
)
manifests = st.builds(
    Manifest,
    st.just("counting"),
    st.text(),
    st.integers(1, 10**6),
    st.lists(snapshots, max_size=4).map(tuple),
    shapes,
    st.integers(0, 2**53),
)
seals = st.builds(Seal, flow=st.just("counting"), key=st.none() | st.binary(min_size=1))


@given(manifests, seals)
def test_a_manifest_survives_json(manifest: Manifest, seal: Seal) -> None:
    assert from_json(to_json(manifest, seal), seal, flow="counting", uri="here") == manifest


@given(manifests, st.binary(min_size=1), st.data())
def test_no_byte_of_a_signed_manifest_can_be_changed(manifest: Manifest, key: bytes, data: st.DataObject) -> None:
    seal = Seal(flow="counting", key=key)
    content = bytearray(to_json(manifest, seal))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    try:
        found = from_json(bytes(content), seal, flow="counting", uri="here")
    except SnapshotError:
        return
    assert found == manifest  # another spelling of the same JSON, such as a tab for a blank


@given(manifests, st.binary(min_size=1))
def test_a_manifest_of_one_flow_can_not_be_copied_to_another(manifest: Manifest, key: bytes) -> None:
    content = to_json(manifest, Seal(flow="counting", key=key))
    with pytest.raises(SnapshotError):
        from_json(content, Seal(flow="other", key=key), flow="other", uri="here")
    with pytest.raises(SnapshotError, match="of flow counting"):
        from_json(
            to_json(manifest, Seal(flow="counting", key=None)),
            Seal(flow="other", key=None),
            flow="other",
            uri="here",
        )
