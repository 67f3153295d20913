"""`pkm snapshots` as a person uses it: list, keep by name, go back; what does not fit is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import orjson
import pytest
from pydantic import SecretStr

from core import aws
from core.errors import PkmError, SnapshotError
from core.recovery import FlowShape, Snapshot, SnapshotStore, shape_of
from core.settings import Settings
from flows import knowledge
from pkm.snapshots import forget, list_snapshots, restore

PKM = Path(sys.executable).with_name("pkm")
FLOW = knowledge.FLOW
SECONDS = 120


def pkm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PKM), "snapshots", *arguments],
        env={**os.environ, "COLUMNS": "120", **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def json_of(*arguments: str, **variables: str) -> Any:
    done = pkm(*arguments, "--json", **variables)
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout)


def refused(*arguments: str, **variables: str) -> str:
    done = pkm(*arguments, **variables)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


def published(settings: Settings, shape: FlowShape, *contents: bytes) -> list[Snapshot]:
    store = SnapshotStore(settings, flow=FLOW)
    execution = store.claim(shape).execution
    return [store.publish(one, execution=execution, epoch=7, state_digest="aa") for one in contents]


def shape(settings: Settings) -> FlowShape:
    return shape_of(knowledge.build(settings), source_partitions=settings.source_partitions)


def test_a_savepoint_is_saved_listed_restored_and_forgotten(settings: Settings) -> None:
    assert list_snapshots(settings, flow=FLOW) == []
    one, two = published(settings, shape(settings), b"one", b"two")
    saved = json_of("save", "before-upgrade")
    assert (saved["id"], saved["name"]) == (two.id, "before-upgrade")
    three = SnapshotStore(settings, flow=FLOW).publish(b"three", execution=1, epoch=9, state_digest="bb")

    rows = json_of("ls")
    assert [row["id"] for row in rows] == [three.id, two.id, one.id]
    assert [row["name"] for row in rows] == [None, "before-upgrade", None]
    assert [row["resumed_next"] for row in rows] == [True, False, False]
    assert rows[0].keys() >= {"created_at", "age_seconds", "execution", "counter", "epoch", "size_bytes", "signed"}
    screen = pkm("ls")
    assert one.id in screen.stdout
    assert all(len(line) <= 120 for line in screen.stdout.splitlines())
    assert json_of("restore", "before-upgrade") == {
        "flow": FLOW,
        "resumes_from": two.id,
        "savepoint": "before-upgrade",
        "execution": 2,
    }
    assert restore(settings, one.id, flow=FLOW, force=False)["resumes_from"] == one.id
    assert list_snapshots(settings, flow=FLOW)[0]["id"] == one.id
    assert forget(settings, "before-upgrade", flow=FLOW)["name"] is None
    assert 'no savepoint "before-upgrade"' in refused("forget", "before-upgrade")


def test_what_does_not_fit_is_refused_with_the_difference(settings: Settings) -> None:
    fits = shape(settings)
    other = FlowShape(("knowledge.older.fold", *fits.steps[1:]), fits.source_partitions)
    (snapshot,) = published(settings, other, b"one")
    said = refused("restore", snapshot.id)
    assert 'the snapshot has "knowledge.older.fold"' in said
    assert f'this flow has "{fits.steps[0]}"' in said
    for changes, flow, match in (
        ({"stream": "elsewhere"}, FLOW, f'belong to stream "{settings.stream}"'),
        ({"source_partitions": 8}, FLOW, "set PKM_SOURCE_PARTITIONS=4"),
        ({}, "gold-rush", 'there is no flow "gold-rush"'),
    ):
        with pytest.raises(PkmError, match=match):
            restore(settings.model_copy(update=changes), snapshot.id, flow=flow, force=True)
    assert restore(settings, snapshot.id, flow=FLOW, force=True)["execution"] == 2


@pytest.mark.parametrize("how", ["pkm", "bytewax"])
def test_a_run_refuses_a_snapshot_that_does_not_fit(settings: Settings, how: str) -> None:
    from pkm.initialise import initialise

    initialise(settings)
    published(settings, FlowShape(("knowledge.older.fold",), settings.source_partitions), b"one")
    command = (
        [str(PKM), "run"]
        if how == "pkm"
        else [
            sys.executable,
            "-m",
            "bytewax.run",
            "flows.knowledge:flow",
            "-r",
            str(settings.recovery_dir),
            "-s",
            "1",
        ]
    )
    done = subprocess.run(
        command + (["-b", "0"] if how == "bytewax" else []),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PKM_ENRICH": "none"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert 'the snapshot has "knowledge.older.fold"' in done.stderr
    manifest = SnapshotStore(settings, flow=FLOW).manifest()
    assert manifest is not None
    assert manifest.execution == 1  # whoever runs goes on


def test_with_a_key_nothing_unsigned_changed_or_played_back_is_taken(settings: Settings) -> None:
    signing = settings.model_copy(update={"snapshot_key": SecretStr("open sesame")})
    one, *_ = published(signing, shape(settings), b"one", b"two", b"three")
    assert [row["signed"] for row in list_snapshots(signing, flow=FLOW)] == [True] * 3
    assert "set PKM_SNAPSHOT_KEY" in refused("ls")
    assert "check PKM_SNAPSHOT_KEY" in refused("ls", PKM_SNAPSHOT_KEY="guess")
    objects, path = aws.object_store(settings), f"snapshots/{FLOW}/{one.name}"
    obstore.put(objects, path, b"0ne")
    with pytest.raises(SnapshotError, match="does not match its hmac-sha256 digest, so it was not opened"):
        restore(signing, one.id, flow=FLOW, force=True)
    obstore.put(objects, path, b"one")
    manifest = f"snapshots/{FLOW}/manifest.json"
    old = bytes(obstore.get(objects, manifest).bytes())
    published(signing, shape(settings), b"four", b"five")
    obstore.put(objects, manifest, old)
    with pytest.raises(SnapshotError, match="somebody put an old one back"):
        restore(signing, one.id, flow=FLOW, force=False)
    assert json_of("restore", one.id, "--force", PKM_SNAPSHOT_KEY="open sesame")["execution"] == 3
