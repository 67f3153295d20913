"""Windows: equal rows however the stream is cut, shared among workers or interrupted."""

from __future__ import annotations

import pickle
from collections import defaultdict
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

from builders import document_of, event_of, record_of
from core.records import Document, Failure, Watermark, WindowAggregate
from operators import windows
from operators.windows import _aggregate, _Windows

START = datetime(2026, 11, 23, 8, tzinfo=UTC)
LENGTH = timedelta(minutes=5)
LATENESS = timedelta(minutes=1)
PARTITIONS = 2

Item = Document | Watermark


def document(
    number: int, seconds: float, *, source_type: str = "git", deleted: bool = False, revived: bool = False
) -> Document:
    event = event_of(
        event_id=f"event-{number:04d}",
        note_id=f"note-{number:04d}",
        source_type=source_type,
        s3_key=f"raw/{number}",
        deleted=deleted,
        record=record_of(number, arrival_time=START + timedelta(seconds=seconds)),
        revived=revived,
    )
    return document_of("", event=event, word_count=0 if deleted else number)


def watermark(partition: int, seconds: float, partitions: int = PARTITIONS) -> Watermark:
    return Watermark(partition, partitions, START + timedelta(seconds=seconds))


def flow_of(
    items: list[Item | TestingSource.EOF], *, batch_size: int, spread: bool = False
) -> tuple[Dataflow, list[WindowAggregate], list[Failure]]:
    flow = Dataflow("windows")
    stream = op.input("inp", flow, TestingSource(items, batch_size))
    split = op.branch("kind", stream, lambda item: isinstance(item, Document))
    documents = op.redistribute("spread", split.trues) if spread else split.trues
    out = windows.tumbling("windows", documents, split.falses, length=LENGTH, lateness=LATENESS)
    rows: list[WindowAggregate] = []
    late: list[Failure] = []
    op.output("rows", out.aggregates, TestingSink(rows))
    op.output("late", out.late, TestingSink(late))
    return flow, rows, late


def run_one(flow: Dataflow, **options: object) -> None:
    run_main(flow, **options)


def run_two(flow: Dataflow, **options: object) -> None:
    cluster_main(flow, [], 0, worker_count_per_proc=2, **options)


both = pytest.mark.parametrize("run", [run_one, run_two], ids=["one worker", "two workers"])
Run = Callable[..., None]
EACH_BATCH = timedelta(0)


def test_windows_are_aligned_to_the_epoch_and_half_open() -> None:
    assert windows.window_start(START + timedelta(seconds=299.999), LENGTH) == START
    assert windows.window_start(START + LENGTH, LENGTH) == START + LENGTH
    assert windows.window_start(datetime(1970, 1, 1, tzinfo=UTC), timedelta(minutes=7)).timestamp() == 0


def test_the_stream_watermark_is_undefined_until_every_partition_has_reported() -> None:
    assert windows.stream_watermark({}, 0) is None
    assert windows.stream_watermark({0: START}, 2) is None
    assert windows.stream_watermark({0: START + LENGTH, 1: START}, 2) == START


@both
def test_a_window_closes_when_lateness_has_passed_on_every_partition(run: Run) -> None:
    flow, rows, late = flow_of(
        [
            document(1, 0),
            document(2, 299),
            document(3, 1, source_type="web"),
            document(4, 10, deleted=True),
            document(5, 300),
            watermark(0, 400),
            watermark(1, 359.9),
            watermark(1, 360),
        ],
        batch_size=3,
    )
    run(flow, epoch_interval=EACH_BATCH)
    closed, provisional = rows[:2], rows[2:]
    assert closed == [
        WindowAggregate(START, START + LENGTH, "git", 3, 2, 3, ("event-0001", "event-0002", "event-0004")),
        WindowAggregate(START, START + LENGTH, "web", 1, 1, 3, ("event-0003",)),
    ]
    assert closed[0].avg_words == 1.5
    assert provisional == [WindowAggregate(START + LENGTH, START + 2 * LENGTH, "git", 1, 1, 5, ("event-0005",))]
    assert late == []


@both
def test_a_late_document_becomes_a_failure_that_names_the_window(run: Run) -> None:
    late_document = document(2, 5)
    flow, rows, late = flow_of(
        [document(1, 0), watermark(0, 360), watermark(1, 360), late_document, document(3, 301)], batch_size=1
    )
    run(flow, epoch_interval=EACH_BATCH)
    assert [(row.window_start, row.event_ids) for row in rows] == [
        (START, ("event-0001",)),
        (START + LENGTH, ("event-0003",)),
    ]
    [failure] = late
    assert (failure.step, failure.error) == ("windows", "LateEvent")
    assert (failure.event_id, failure.s3_key, failure.record) == ("event-0002", "raw/2", late_document.event.record)
    assert "2026-11-23T08:00:00+00:00 to 2026-11-23T08:05:00+00:00" in failure.message


@both
def test_a_revived_event_is_not_counted_again(run: Run) -> None:
    flow, rows, late = flow_of([document(1, 0), document(2, 1, revived=True)], batch_size=2)
    run(flow)
    assert [row.event_ids for row in rows] == [("event-0001",)]
    assert late == []


@both
def test_an_open_window_is_shown_at_the_end_and_completed_by_the_next_run(run: Run, tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    recovery = RecoveryConfig(str(tmp_path))
    flow, rows, _ = flow_of(
        [
            document(1, 0),
            watermark(0, 0),
            TestingSource.EOF(),
            document(2, 1),
            watermark(0, 400),
            TestingSource.EOF(),
            watermark(1, 10),
            TestingSource.EOF(),
            watermark(1, 400),
        ],
        batch_size=1,
    )
    seen = []
    for _ in range(4):
        run(flow, epoch_interval=EACH_BATCH, recovery_config=recovery)
        seen.append([row.event_ids for row in rows])
        rows.clear()
    one, two = ("event-0001",), ("event-0001", "event-0002")
    # The third run changes nothing, so it repeats nothing; the fourth closes the window.
    assert seen == [[one], [two], [], [two]]


@st.composite
def epochs(draw: st.DrawFn) -> list[list[Item]]:
    """Epochs of a stream that keeps its promise, but for documents whose window an earlier epoch has closed."""
    reported: dict[int, int] = {}
    number = 0
    result: list[list[Item]] = []
    for _ in range(draw(st.integers(1, 6))):
        closed_to = min(reported.values()) - 360 if len(reported) == PARTITIONS else None
        items: list[Item] = []
        for partition, step in draw(
            st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(1, 500)), max_size=3)
        ):
            reported[partition] = reported.get(partition, 0) + step
            items.append(watermark(partition, reported[partition]))
        for seconds, web, kind in draw(
            st.lists(st.tuples(st.integers(1, 900), st.booleans(), st.sampled_from("..drl")), max_size=6)
        ):
            if kind == "l" and closed_to is None:
                continue
            number += 1
            newest = max(reported.values(), default=0)
            items.append(
                document(
                    number,
                    (closed_to or 0) - seconds if kind == "l" else newest + seconds,
                    source_type="web" if web else "git",
                    deleted=kind == "d",
                    revived=kind == "r",
                )
            )
        result.append(items)
    return result


def expected(stream: list[list[Item]]) -> tuple[dict[tuple[datetime, str], WindowAggregate], set[str]]:
    """Closed windows and late events, by the definition: epoch by epoch, without batches or partial aggregates."""
    reported: dict[int, datetime] = {}
    counted: dict[tuple[datetime, str], list[Document]] = defaultdict(list)
    late: set[str] = set()

    def limit() -> datetime | None:
        return min(reported.values()) - LATENESS if len(reported) == PARTITIONS else None

    for items in stream:
        before = limit()
        for item in items:
            if isinstance(item, Watermark):
                reported[item.source_partition] = item.time
            elif not item.event.revived:
                start = windows.window_start(item.event.record.arrival_time, LENGTH)
                if before is not None and start + LENGTH <= before:
                    late.add(item.event.event_id)
                else:
                    counted[start, item.event.source_type].append(item)
    end = limit()
    rows = {}
    for (start, source_type), group in counted.items():
        if end is not None and start + LENGTH <= end:
            alive = [one for one in group if not one.event.deleted]
            rows[start, source_type] = WindowAggregate(
                start,
                start + LENGTH,
                source_type,
                len(group),
                len(alive),
                sum(one.word_count for one in alive),
                tuple(sorted(one.event.event_id for one in group)),
            )
    return rows, late


@given(stream=epochs(), data=st.data())
def test_any_cut_order_and_restart_gives_the_rows_of_the_definition(
    stream: list[list[Item]], data: st.DataObject
) -> None:
    logic = _Windows(LENGTH, LATENESS, None)
    rows: list[WindowAggregate] = []
    late: set[str] = set()

    def collect(emitted: object) -> None:
        for one in emitted:  # type: ignore[attr-defined]
            if isinstance(one, WindowAggregate):
                rows.append(one)
            else:
                late.add(one.event_id)

    for items in stream:
        rest = data.draw(st.permutations(items))
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            batch, rest = rest[:size], rest[size:]
            marks = [item for item in batch if isinstance(item, Watermark)]
            partials = _aggregate(LENGTH, [item for item in batch if isinstance(item, Document)])
            emitted, discard = logic.on_batch(data.draw(st.permutations([*partials, *marks])))
            assert not discard
            collect(emitted)
        if data.draw(st.booleans()):
            frozen = logic.snapshot()
            kept = pickle.dumps(frozen)
            logic.on_batch(_aggregate(LENGTH, [document(9999, 10**6)]))
            assert pickle.dumps(frozen) == kept, "a snapshot changed after it was taken"
            logic = _Windows(LENGTH, LATENESS, pickle.loads(kept))
    wanted, wanted_late = expected(stream)
    assert {(row.window_start, row.source_type): row for row in rows} == wanted
    assert len(rows) == len(wanted), "a window was emitted twice"
    assert late == wanted_late
    logic.on_eof()
    assert list(logic.on_eof()[0]) == [], "an unchanged window was shown twice"


@both
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_workers_and_batch_sizes_give_equal_rows(run: Run, batch_size: int) -> None:
    items: list[Item] = [
        document(number, number * 7, source_type=("git", "web")[number % 2]) for number in range(300)
    ]
    flow, rows, late = flow_of(items, batch_size=batch_size, spread=True)
    run(flow, epoch_interval=EACH_BATCH)
    reference = sorted(
        _Windows(LENGTH, LATENESS, None).on_batch(
            [*_aggregate(LENGTH, items), watermark(0, 10**5), watermark(1, 10**5)]
        )[0],
        key=lambda row: (row.window_start, row.source_type),
    )
    assert rows == reference
    assert sum(row.count for row in rows) == 300
    assert late == []


def test_a_partition_that_reports_an_older_watermark_changes_nothing() -> None:
    logic = _Windows(LENGTH, LATENESS, None)
    logic.on_batch([watermark(0, 1000), watermark(1, 1000)])
    logic.on_batch([watermark(0, 10)])
    emitted, _ = logic.on_batch(_aggregate(LENGTH, [replace(document(1, 0))]))
    assert [type(one) for one in emitted] == [Failure]


def test_a_snapshot_does_not_change_after_it_was_taken() -> None:
    logic = _Windows(LENGTH, LATENESS, None)
    logic.on_batch([*_aggregate(LENGTH, [document(1, 0)]), watermark(0, 0)])
    snapshot = logic.snapshot()
    frozen = pickle.dumps(snapshot)
    logic.on_batch([*_aggregate(LENGTH, [document(2, 1)]), watermark(0, 10)])
    assert pickle.dumps(snapshot) == frozen
