"""The duplicate filter: each event once, older versions marked, memory bounded by the retention."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from hypothesis import given
from hypothesis import strategies as st

from builders import event_of, record_of
from core.records import Event, Redrive
from core.telemetry import DUPLICATES
from operators import dedupe
from operators.dedupe import _Bucket

START = datetime(2026, 11, 23, 8, tzinfo=UTC)
RETENTION = timedelta(hours=24)


def event(note: str, version: str, *, hours: float = 0, deleted: bool = False) -> Event:
    return event_of(
        event_id=f"{note}-{version}",
        note_id=note,
        deleted=deleted,
        record=record_of(partition_key=note, arrival_time=START + timedelta(hours=hours)),
    )


def told(events: list[Event]) -> list[str]:
    """Event ids that passed; an exclamation mark stands for revived."""
    return [one.event_id + ("!" if one.revived else "") for one in events]


def run_one(flow: Dataflow, **options: object) -> None:
    run_main(flow, **options)


def run_two(flow: Dataflow, **options: object) -> None:
    cluster_main(flow, [], 0, worker_count_per_proc=2, **options)


both = pytest.mark.parametrize("run", [run_one, run_two], ids=["one worker", "two workers"])
Run = Callable[..., None]


def flow_of(events: list[Event | TestingSource.EOF], *, batch_size: int = 10) -> tuple[Dataflow, list[Event]]:
    flow = Dataflow("dedupe")
    passed: list[Event] = []
    unique = dedupe.unique("dedupe", op.input("inp", flow, TestingSource(events, batch_size)), retention=RETENTION)
    op.output("out", unique, TestingSink(passed))
    return flow, passed


def test_there_are_4096_buckets_and_a_note_stays_in_its_own() -> None:
    buckets = {dedupe.bucket_of(f"note-{number}") for number in range(40_000)}
    assert len(buckets) > 4000
    assert all(len(bucket) == 3 and int(bucket, 16) < 4096 for bucket in buckets)
    assert dedupe.bucket_of("note-1") == dedupe.bucket_of("note-1")


@both
def test_a_repeated_event_is_dropped_and_counted(run: Run) -> None:
    before = DUPLICATES._value.get()
    flow, passed = flow_of([event("a", "1"), event("b", "1"), event("a", "1"), event("a", "1")])
    run(flow)
    assert sorted(told(passed)) == ["a-1", "b-1"]
    assert DUPLICATES._value.get() - before == 2


@both
def test_a_note_that_goes_back_to_an_older_version_passes_as_revived(run: Run) -> None:
    versions = ["1", "2", "1", "1", "2", "3", "3"]
    flow, passed = flow_of([event("a", version) for version in versions])
    run(flow)
    assert told(passed) == ["a-1", "a-2", "a-1!", "a-2!", "a-3"]


def test_a_note_can_be_deleted_created_anew_and_deleted_again() -> None:
    bucket = _Bucket(RETENTION, None)
    stream = [event("a", version, deleted=version == "gone") for version in ["1", "gone", "gone", "1", "gone"]]
    passed, _ = bucket.on_batch(stream)
    assert told(list(passed)) == ["a-1", "a-gone", "a-1!", "a-gone!"]


def test_an_event_is_remembered_for_the_retention_after_it_was_last_seen() -> None:
    bucket = _Bucket(RETENTION, None)
    hours = [0, 23, 46, 71]
    passed = [told(list(bucket.on_batch([event("a", "1", hours=hour)])[0])) for hour in hours]
    assert passed == [["a-1"], [], [], ["a-1"]]


def test_memory_holds_the_retention_and_no_more() -> None:
    bucket = _Bucket(RETENTION, None)
    for hour in range(1000):
        bucket.on_batch([event(f"note-{hour}", "1", hours=hour)])
    assert len(bucket._notes) <= 24 * 9 / 8 + 1
    assert len(bucket.snapshot()[2]) == 25


def test_a_note_takes_no_more_memory_than_documented() -> None:
    # docs/recovery.md: about 400 bytes a note in memory, 55 in a snapshot, for 27 hours at most.
    per_hour, hours = 40, 72
    sizes, snapshots = [], []
    # What the libraries hold is not looked through again for each hour.
    gc.freeze()
    tracemalloc.start()
    try:
        bucket = _Bucket(RETENTION, None)
        for hour in range(hours):
            for number in range(per_hour):
                bucket.on_batch([event(f"note-{hour}-{number}", "1", hours=hour + number / per_hour)])
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
            snapshots.append(len(pickle.dumps(bucket.snapshot())))
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    remembered = per_hour * 27
    assert max(sizes) < 500 * remembered
    assert max(snapshots) < 75 * per_hour * 25
    # Three days take no more than one and a half.
    assert max(sizes[36:]) <= 1.1 * max(sizes[:36])


@both
def test_a_restart_remembers_what_was_seen(run: Run, tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    flow, passed = flow_of(
        [event("a", "1"), event("a", "2"), TestingSource.EOF(), event("a", "2"), event("a", "1"), event("b", "1")]
    )
    for _ in range(2):
        run(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(tmp_path)))
    assert told(passed)[:2] == ["a-1", "a-2"]
    assert sorted(told(passed)[2:]) == ["a-1!", "b-1"]


streams = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.floats(0, 60, allow_nan=False)), max_size=30
)


def by_definition(stream: list[Event]) -> list[str]:
    """The rule itself, over the whole history: no eviction, no state."""
    passed, history, newest = [], [], START
    for one in stream:
        newest = max(newest, one.record.arrival_time)
        alive = [
            past
            for past in history
            if past.note_id == one.note_id
            and max(p.record.arrival_time for p in history if p.event_id == past.event_id) >= newest - RETENTION
        ]
        if not any(past.event_id == one.event_id for past in alive):
            passed.append(one.event_id)
        elif alive[-1].event_id != one.event_id:
            passed.append(one.event_id + "!")
        history.append(one)
    return passed


@given(stream=streams, sizes=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1))
def test_batches_restarts_and_eviction_change_nothing(
    stream: list[tuple[str, str, float]], sizes: list[tuple[int, bool]]
) -> None:
    events = [event(note, version, hours=round(hours, 3)) for note, version, hours in stream]
    bucket = _Bucket(RETENTION, None)
    passed: list[Event] = []
    rest, turn = events, 0
    while rest:
        size, restart = sizes[turn % len(sizes)]
        emitted, _ = bucket.on_batch(rest[:size])
        passed.extend(emitted)
        rest, turn = rest[size:], turn + 1
        if restart:
            bucket = _Bucket(RETENTION, pickle.loads(pickle.dumps(bucket.snapshot())))
    assert told(passed) == by_definition(events)


def test_a_snapshot_does_not_change_after_it_was_taken() -> None:
    bucket = _Bucket(RETENTION, None)
    bucket.on_batch([event("a", "1")])
    snapshot = bucket.snapshot()
    frozen = pickle.dumps(snapshot)
    bucket.on_batch([event("a", "2"), event("b", "1")])
    assert pickle.dumps(snapshot) == frozen


def redriven(note: str, version: str, *, attempt: int, first: float, hours: float, outdated: bool = False) -> Event:
    """The event again, as a dead letter that first arrived after `first` hours."""
    again = event(note, version, hours=hours)
    return replace(again, redrive=Redrive(attempt, START + timedelta(hours=first)), outdated=outdated)


def passed_by(events: list[Event]) -> list[Event]:
    """What a bucket lets pass, one batch an event, with a snapshot taken and restored in between."""
    passed: list[Event] = []
    snapshot = None
    for one in events:
        bucket = _Bucket(RETENTION, pickle.loads(pickle.dumps(snapshot)))
        out, _ = bucket.on_batch([one])
        passed += out
        snapshot = bucket.snapshot()
    return passed


def test_a_redriven_event_passes_once_for_each_attempt() -> None:
    passed = passed_by(
        [
            event("a", "1"),
            redriven("a", "1", attempt=1, first=0, hours=1),
            redriven("a", "1", attempt=1, first=0, hours=2),
            redriven("a", "1", attempt=2, first=0, hours=3),
            event("a", "1", hours=4),
        ]
    )
    assert [one.redrive.attempt if one.redrive else 0 for one in passed] == [0, 1, 2]
    assert not any(one.revived or one.outdated for one in passed)


def test_a_redriven_event_that_was_forgotten_passes_once_too() -> None:
    passed = passed_by(
        [
            event("a", "1"),
            redriven("a", "1", attempt=1, first=0, hours=72),
            redriven("a", "1", attempt=1, first=0, hours=73),
            event("a", "1", hours=74),
        ]
    )
    assert [one.record.arrival_time - START for one in passed] == [timedelta(), timedelta(hours=72)]


def test_a_redriven_event_is_outdated_when_a_newer_version_came_after_it_failed() -> None:
    passed = passed_by([event("a", "1"), event("a", "2", hours=1), redriven("a", "1", attempt=1, first=0, hours=2)])
    assert [one.outdated for one in passed] == [False, False, True]


def test_a_redriven_event_is_not_outdated_by_versions_before_it() -> None:
    # It failed in the parser, so the filter never saw it.
    passed = passed_by([event("a", "1"), redriven("a", "2", attempt=1, first=1, hours=2)])
    assert [one.outdated for one in passed] == [False, False]


def test_what_the_redrive_itself_found_out_stays() -> None:
    (passed,) = passed_by([redriven("a", "1", attempt=1, first=0, hours=100, outdated=True)])
    assert passed.outdated


def test_an_outdated_redrive_does_not_become_the_latest_version() -> None:
    passed = passed_by(
        [
            event("a", "1"),
            event("a", "2", hours=20),
            redriven("a", "1", attempt=1, first=0, hours=23),
            event("a", "2", hours=30),
            event("a", "1", hours=40),
            event("a", "1", hours=41),
        ]
    )
    assert told(passed) == ["a-1", "a-2", "a-1", "a-1!"]
