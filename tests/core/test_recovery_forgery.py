"""Nothing forged is opened: what was damaged, exchanged, edited or played back is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import obstore
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import aws
from core.errors import FencedError, SnapshotError
from core.recovery import FlowShape, Manifest, Snapshot, SnapshotStore
from core.recovery.manifest import Seal, from_json, to_json, unknown_to
from core.settings import Settings
from snapshots import CONTENT, newest_of, overwrite, publish_one, read_object, with_key


@pytest.mark.parametrize("signed", [False, True])
def test_a_flipped_byte_is_refused(settings: Settings, signed: bool) -> None:
    settings = with_key(settings) if signed else settings
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = publish_one(store)
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    overwrite(settings, snapshot.name, bytes(damaged))
    with pytest.raises(SnapshotError, match=rf"{snapshot.name} does not match its (hmac-)?sha256 digest"):
        store.content(snapshot)
    overwrite(settings, snapshot.name, CONTENT[:-1])
    with pytest.raises(SnapshotError, match=f"has {len(CONTENT) - 1} bytes instead of {len(CONTENT)}"):
        store.content(snapshot)


def test_a_missing_snapshot_is_named(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = publish_one(store)
    obstore.delete(aws.object_store(settings), f"snapshots/counting/{snapshot.name}")
    with pytest.raises(SnapshotError, match=rf"{snapshot.name} is gone although the manifest lists it"):
        store.content(snapshot)


def test_another_key_is_refused_and_does_not_fence_the_running_execution(settings: Settings) -> None:
    store = SnapshotStore(with_key(settings), flow="counting")
    store.claim()
    publish_one(store)
    stranger = SnapshotStore(with_key(settings, "guess"), flow="counting")
    with pytest.raises(SnapshotError, match="check PKM_SNAPSHOT_KEY"):
        stranger.claim()
    with pytest.raises(SnapshotError, match="check PKM_SNAPSHOT_KEY"):
        stranger.manifest()
    store.check(1)


def test_without_the_key_a_signed_snapshot_is_refused(settings: Settings) -> None:
    store = SnapshotStore(with_key(settings), flow="counting")
    store.claim()
    snapshot = publish_one(store)
    keyless = SnapshotStore(settings, flow="counting")
    with pytest.raises(SnapshotError, match=r"manifest.json is signed: set PKM_SNAPSHOT_KEY"):
        keyless.claim()
    with pytest.raises(SnapshotError, match="sqlite is signed: set PKM_SNAPSHOT_KEY"):
        keyless.content(snapshot)


def test_with_a_key_an_unsigned_snapshot_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    snapshot = publish_one(store)
    signing = SnapshotStore(with_key(settings), flow="counting")
    with pytest.raises(SnapshotError, match=r"manifest.json is not signed, but PKM_SNAPSHOT_KEY is set"):
        signing.claim()
    with pytest.raises(SnapshotError, match="sqlite is not signed, but PKM_SNAPSHOT_KEY is set"):
        signing.content(snapshot)


def test_a_signed_snapshot_can_not_stand_in_for_another(settings: Settings) -> None:
    signing = with_key(settings)
    store = SnapshotStore(signing, flow="counting")
    store.claim()
    first, second = publish_one(store, b"old state"), publish_one(store, b"new state")
    swapped = dataclasses.replace(second, digest=first.digest)
    overwrite(signing, second.name, b"old state")
    with pytest.raises(SnapshotError, match="does not match"):
        store.content(swapped)


@pytest.mark.parametrize("signed", [False, True])
def test_an_old_manifest_that_was_put_back_is_refused_by_the_next_start(settings: Settings, signed: bool) -> None:
    settings = with_key(settings) if signed else settings
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    publish_one(store)
    old = read_object(settings, "manifest.json")
    newest = [publish_one(store, bytes([number])) for number in range(3)][-1]
    overwrite(settings, "manifest.json", old)
    with pytest.raises(SnapshotError, match=rf"manifest.json is older than snapshots/counting/{newest.name}"):
        SnapshotStore(settings, flow="counting").claim()
    obstore.delete(aws.object_store(settings), "snapshots/counting/manifest.json")
    with pytest.raises(SnapshotError, match=r"manifest.json is gone, but there is"):
        SnapshotStore(settings, flow="counting").claim()


def test_a_manifest_of_an_earlier_execution_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    first = publish_one(store)
    old = read_object(settings, "manifest.json")
    store.claim()
    publish_one(store, execution=2)
    overwrite(settings, "manifest.json", old)
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
    publish_one(store)
    old = read_object(settings, "manifest.json")
    publish_one(store)
    overwrite(settings, "manifest.json", old)
    for use in (lambda: publish_one(store), lambda: store.check(1)):
        with pytest.raises(SnapshotError, match="has revision 2, but this process has seen 3"):
            use()


def test_a_start_beside_a_running_execution_is_no_alarm(settings: Settings) -> None:
    SnapshotStore(settings, flow="counting").claim()

    def publish(execution: int) -> None:
        store = SnapshotStore(settings, flow="counting")
        with contextlib.suppress(FencedError):
            while True:
                publish_one(store, execution=execution)

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
    publish_one(store)
    obstore.delete(aws.object_store(settings), "snapshots/counting/manifest.json")
    store.check(1)
    snapshot = publish_one(store)
    assert newest_of(store) == snapshot


def test_a_manifest_that_is_no_manifest_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    for content in (b"", b"[]", b"{", b'{"manifest": 1, "digest_algorithm": "sha256"}'):
        overwrite(settings, "manifest.json", content)
        with pytest.raises(SnapshotError, match=r"manifest.json can't be read"):
            store.claim()


def test_an_unsigned_manifest_that_was_edited_is_refused(settings: Settings) -> None:
    store = SnapshotStore(settings, flow="counting")
    store.claim()
    document = orjson.loads(read_object(settings, "manifest.json"))
    document["manifest"]["execution"] = 41
    overwrite(settings, "manifest.json", orjson.dumps(document))
    with pytest.raises(SnapshotError, match="does not match its sha256 digest"):
        store.claim()


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
