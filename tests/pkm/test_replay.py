"""Replays: rows are replaced by id, newest versions win, kills and rivals do no harm."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import aws
from core.errors import CommitError, FencedError, MissingError, SettingsError, SnapshotError
from core.records import Position
from core.recovery.directory import DirectoryLock
from core.recovery.store import SnapshotStore
from core.settings import load_settings
from core.telemetry import REUSED
from pkm.replay import plan_replay, run_replay
from pkm.replay_known import Held, _agree
from pkm.replay_plan import choose_version, unfinished
from sinks import iceberg_commit, lance, slatedb

BRONZE, FAILURES, SILVER, METRICS = "bronze.notes", "bronze.failures", "silver.notes", "silver.metrics"
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


def replay(world: Any, *, workers: int = 1, **options: Any) -> dict[str, Any]:
    plan = plan_replay(world.settings, **{"start": "trim-horizon", **options})
    result = run_replay(world.settings, plan, workers=workers)
    assert result is not None
    return result


def ordered(rows: list[dict[str, Any]]) -> list[bytes]:
    return sorted(orjson.dumps({**row, "payload": None}, default=str) for row in rows)


def versions(world: Any) -> dict[str, str]:
    rows = world.table(SILVER)
    assert len({row["note_id"] for row in rows}) == len(rows)
    return {row["event_id"]: row["processing_version"] for row in rows}


def metadata(world: Any, record: dict[str, Any]) -> tuple[str, str]:
    note = slatedb.get_note(world.settings, record["note_id"])
    assert note is not None
    return note["event_id"], note["processing_version"]


def position(world: Any, record: dict[str, Any]) -> str:
    (row,) = (row for row in world.table(BRONZE) if row["event_id"] == record["event_id"])
    return f"{row['shard_id']}:{row['sequence_number']}"


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_a_replay_replaces_rows_by_id_and_adds_none(world: Any) -> None:
    notes = [world.record(f"note-{number}.md", b"# Note %d\n" % number) for number in range(5)]
    old, new = (world.record("twice.md", text) for text in (b"# Old\n", b"# New words\n"))
    gone = world.record("gone.md", b"# Gone\n")
    deletion = {**gone, "event_id": "deletion", "deleted": True, "s3_key": ""}
    missing = world.record("missing.md", b"# Missing\n", stored=False)
    world.send(*notes, old, gone, notes[0], new, deletion, missing, b"not JSON {")
    world.run()
    before = {name: world.table(name) for name in (BRONZE, FAILURES, METRICS)}
    stop = threading.Event()
    seen: list[set[str]] = []

    def read_all_the_time() -> None:
        while not stop.is_set():
            seen.append(set(versions(world)))

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        first = replay(world, workers=2)
    finally:
        stop.set()
        reader.join()

    current = {record["event_id"] for record in (*notes, new)}
    assert (first["version"], first["notes"], first["failures"]) == ("2", 6, 0)
    assert versions(world) == dict.fromkeys(current, "2")
    assert all(found == current for found in seen), "a reader sees every note once, at any time"
    assert {name: ordered(world.table(name)) for name in before} == {
        name: ordered(rows) for name, rows in before.items()
    }
    assert metadata(world, new) == (new["event_id"], "2")
    assert slatedb.get_note(world.settings, gone["note_id"]) is None
    assert slatedb.count_notes(world.settings) == 6

    # The flow goes on where it was, in its own version.
    late = world.record("late.md", b"# Late\n")
    world.send(late, notes[1])
    world.run()
    assert versions(world) == {**dict.fromkeys(current, "2"), late["event_id"]: "1"}
    assert world.counted() == world.bronze()


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_a_range_that_ends_before_the_newest_version_rolls_nothing_back(world: Any) -> None:
    alone, old = world.record("alone.md", b"# Alone\n"), world.record("note.md", b"# Old\n")
    world.send(alone, old)
    time.sleep(1.1)
    between = datetime.now(UTC)
    time.sleep(1.1)
    new, after = world.record("note.md", b"# New\n"), world.record("after.md", b"# After\n")
    world.send(new, after)
    world.run()
    windows = ordered(world.table(METRICS))

    replay(world, until=f"timestamp:{between.isoformat()}")
    assert versions(world) == {alone["event_id"]: "2", new["event_id"]: "1", after["event_id"]: "1"}
    assert metadata(world, new) == (new["event_id"], "1")
    assert ordered(world.table(METRICS)) == windows, "a part of a window replaces no window"

    replay(world, start=f"timestamp:{between.isoformat()}")
    assert versions(world) == {alone["event_id"]: "2", new["event_id"]: "3", after["event_id"]: "3"}

    # Sequence numbers are a range of one shard, both ends included.
    place = position(world, alone)
    assert replay(world, start=f"sequence:{place}", until=f"sequence:{place}", version="one")["version"] == "one"
    assert versions(world) == {alone["event_id"]: "one", new["event_id"]: "3", after["event_id"]: "3"}
    with pytest.raises(MissingError, match="no shard elsewhere"):
        plan_replay(world.settings, start="sequence:elsewhere:1")


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_what_fails_in_a_replay_keeps_what_it_had_and_says_so(world: Any) -> None:
    good, bad = world.record("good.md", b"# Good\n"), world.record("bad.md", b"# Bad\n")
    world.send(good, bad)
    world.run()
    windows = ordered(world.table(METRICS))
    aws.s3_client(world.settings).delete_object(Bucket=world.settings.bucket, Key=bad["s3_key"])

    result = replay(world)

    assert result["failures"] == 1
    assert versions(world) == {good["event_id"]: "2", bad["event_id"]: "1"}
    (failure,) = world.table(FAILURES)
    assert failure["message"].startswith(f"{result['replay']} with version 2, the note stays: ")
    assert failure["shard_id"].startswith("shardId-")
    assert ordered(world.table(METRICS)) == windows
    assert world.letters() == [], "the event is stored: there is nothing to redrive"


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_a_replay_that_dies_is_resumed_by_the_same_command(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [world.record(f"note-{number:02}.md", b"# Note %d\n" % number) for number in range(40)]
    world.send(*records)
    world.run()
    before = {name: ordered(world.table(name)) for name in (BRONZE, METRICS)}
    monkeypatch.setattr("sources.kinesis_reading.FIRST_LIMIT", 1)
    monkeypatch.setattr("sources.kinesis_reading.MOST_RECORDS", 1)
    commits = []
    honest = slatedb.MetadataPart.snapshot

    def dying(part: slatedb.MetadataPart) -> str:
        commits.append(part)
        if len(commits) > 6 and "2" in versions(world).values():
            raise CommitError("pulled the plug")
        return honest(part)

    with monkeypatch.context() as patched:
        patched.setattr(slatedb.MetadataPart, "snapshot", dying)
        with pytest.raises(CommitError, match="plug"):
            replay(world)
    done = versions(world)
    assert set(done.values()) == {"1", "2"}, "it died in the middle"
    plan = unfinished(world.settings)
    assert plan is not None
    with pytest.raises(SettingsError, match=f"{plan.name}.*--abandon"):
        plan_replay(world.settings, start="trim-horizon", version="7")
    assert unfinished(world.settings) == plan

    result = replay(world)

    assert (result["replay"], result["version"], result["notes"]) == (plan.name, "2", 40)
    assert result["resumed"]
    assert versions(world) == dict.fromkeys((record["event_id"] for record in records), "2")
    assert {metadata(world, record) for record in records} == {(record["event_id"], "2") for record in records}
    assert {name: ordered(world.table(name)) for name in before} == before
    assert unfinished(world.settings) is None
    # Nothing of it is left behind.
    kept = aws.s3_client(world.settings).list_objects_v2(Bucket=world.settings.bucket, Prefix="snapshots/replay-")
    assert kept["KeyCount"] == 0


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_a_note_that_the_flow_was_writing_when_it_died_is_left_to_the_flow(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = world.record("note.md", b"# Old\n"), world.record("other.md", b"# Other\n")
    world.send(old, other)
    world.run()
    new = world.record("note.md", b"# New\n")
    world.send(new)
    commit, snapshot = iceberg_commit.Committer.commit, slatedb.MetadataPart.snapshot
    settings = world.settings

    def never(committer: Any, pending: Any) -> None:
        # What the snapshot names is committed on the worker's thread, and is in the table already.
        if pending.table != SILVER or not threading.current_thread().name.startswith("commit-"):
            commit(committer, pending)

    def last(part: slatedb.MetadataPart) -> str:
        snapshot(part)
        raise CommitError("pulled the plug")

    world.settings = settings.model_copy(update={"until_caught_up": False})
    with monkeypatch.context() as patched:
        patched.setattr(iceberg_commit.Committer, "commit", never)
        patched.setattr(slatedb.MetadataPart, "snapshot", last)
        with pytest.raises(CommitError):
            world.run()
    world.settings = settings
    assert metadata(world, new) == (new["event_id"], "1")
    assert versions(world) == {old["event_id"]: "1", other["event_id"]: "1"}

    replay(world)
    assert versions(world) == {old["event_id"]: "1", other["event_id"]: "2"}
    assert metadata(world, new) == (new["event_id"], "1"), "the newer version stays"

    world.run()
    assert versions(world) == {new["event_id"]: "1", other["event_id"]: "2"}


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_replay_and_flow_never_write_at_the_same_time(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.send(world.record("note.md", b"# Note\n"))
    world.run()

    # The flow runs on this machine.
    lock = DirectoryLock(world.settings.recovery_dir / "knowledge")
    assert lock.acquire(seconds=5)
    with pytest.raises(FencedError, match="stop it"):
        replay(world)
    lock.release()

    # The flow is started elsewhere, after the replay has looked at the tables.
    honest = slatedb.MetadataSink.build_part

    def started_elsewhere(sink: Any, *arguments: Any) -> Any:
        SnapshotStore(world.settings, flow="knowledge").claim()
        return honest(sink, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(slatedb.MetadataSink, "build_part", started_elsewhere)
        with pytest.raises(FencedError):
            replay(world)
    assert set(versions(world).values()) == {"1"}
    assert replay(world)["notes"] == 1


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_a_replay_gives_vectors_to_notes_that_had_none(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (world.record("note.md", text) for text in (b"# Old\n\nAda Lovelace.\n", b"# New\n\nMarie Curie.\n"))
    world.send(old, new)
    world.run()
    monkeypatch.setenv("PKM_ENRICH", "embedded")
    load_settings.cache_clear()
    world.settings = load_settings()
    from pkm.initialise import initialise

    initialise(world.settings)
    assert lance.count_chunks(world.settings) == 0

    import lance as library

    # The first replay computes, the second finds the same text, models and code.
    for version, reused in (("2", 0), ("3", 1)):
        before = REUSED._value.get()
        assert replay(world)["version"] == version
        assert REUSED._value.get() - before == reused
        assert versions(world) == {new["event_id"]: version}
        (row,) = world.table(SILVER)
        assert row["chunk_count"] == 1
        options = aws.lance_storage_options(world.settings)
        dataset = library.dataset(world.settings.vectors_uri, storage_options=options)
        (chunk,) = dataset.to_table(columns=["id", "metadata"]).to_pylist()
        assert chunk["id"] == f"{new['note_id']}#0"
        assert chunk["metadata"]["processing_version"] == version


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_another_start_than_the_snapshots_is_refused_unless_forced(world: Any) -> None:
    world.send(world.record("note.md", b"# Note\n"))
    world.run()
    settings = world.settings

    world.settings = settings.model_copy(update={"start": "latest"})
    with pytest.raises(SnapshotError, match="PKM_FORCE_START"):
        world.run()
    world.settings = settings.model_copy(
        update={"start": f"timestamp:{(datetime.now(UTC) - timedelta(hours=1)).isoformat()}", "force_start": True}
    )
    world.run()

    assert len(world.table(BRONZE)) == len(world.table(SILVER)) == 1
    assert world.counted() == world.bronze()


@pytest.mark.parametrize(
    ("asked", "live", "present", "version"),
    [
        (None, "1", [], "2"),
        (None, "1", ["1", "4", "other"], "5"),
        (None, "v1", ["v1"], "v1-20261123T080000Z"),
        ("mpnet", "1", ["1", "mpnet"], "mpnet"),
    ],
)
def test_a_replay_has_a_version_of_its_own(asked: str | None, live: str, present: list[str], version: str) -> None:
    assert choose_version(asked, live=live, present=present, now=NOW) == version


def test_the_flows_own_version_is_refused() -> None:
    with pytest.raises(SettingsError, match="PKM_PROCESSING_VERSION"):
        choose_version("1", live="1", present=[], now=NOW)


@given(
    stored=st.sampled_from([None, "old", "new"]),
    chunks=st.integers(0, 1),
    embedded=st.sampled_from([None, Position("a", 1), Position("a", 2), Position("b", 2)]),
    wrote_metadata=st.booleans(),
    wrote_vectors=st.booleans(),
)
def test_only_what_all_stores_of_the_flow_agree_about_is_replayed(
    stored: str | None, chunks: int, embedded: Position | None, wrote_metadata: bool, wrote_vectors: bool
) -> None:
    place = {"shard_id": "a", "sequence_number": "2", "subsequence_number": 0}
    row = {"note_id": "note", "event_id": "new", "chunk_count": chunks, **place}
    known = {"note": stored} if stored else {}
    vectors = {"note": embedded} if embedded else {}

    agreed = _agree(row, Held((wrote_metadata,), wrote_vectors), known, vectors)

    has_chunks = embedded == (Position("a", 2) if chunks else None)
    assert agreed == ((stored == "new" or not wrote_metadata) and (has_chunks or not wrote_vectors))
