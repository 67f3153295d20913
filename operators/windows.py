"""Counts documents in tumbling windows of arrival time, closed by the stream's own watermark.

Bytewax's windowing operators can't be used here. Their watermark is kept for each key and moves with the wall
clock, so a replay that reads slower than the stream was written makes documents late that were not late live; and
at the end of input they emit and drop windows that are still filling, so the next run starts them anew and the
table's row loses what it had. Here the watermark comes with the stream, and an open window outlives the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeGuard

import bytewax.operators as op
from bytewax.dataflow import Stream, operator
from bytewax.operators import StatefulBatchLogic

from core import stopping
from core.records import Document, Event, Failure, RawRecord, Watermark, WindowAggregate

__all__ = ["WindowsOut", "stream_watermark", "tumbling", "window_start"]

STATE_VERSION = 1
STEP = "windows"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Window = tuple[datetime, str]
"""Start and source_type."""


@dataclass(frozen=True)
class WindowsOut:
    """Result streams of the windows."""

    aggregates: Stream[WindowAggregate]
    """Rows to be replaced by (window_start, source_type): final ones, and at the end of input provisional ones."""

    late: Stream[Failure]
    """Documents whose window was closed already."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What is left of an event: its id to be counted, the rest in case its window is closed already."""

    event_id: str
    s3_key: str
    record: RawRecord


@dataclass(frozen=True, slots=True)
class _Partial:
    """What one micro-batch adds to a window."""

    window: _Window
    document_count: int
    word_sum: int
    events: tuple[_Counted, ...]


@dataclass(slots=True)
class _Open:
    """A window that is filling. `event_ids` grows by one tuple a micro-batch, so a snapshot shares them."""

    count: int = 0
    document_count: int = 0
    word_sum: int = 0
    event_ids: list[tuple[str, ...]] = field(default_factory=list)
    changed: bool = False
    """Whether it has something that was not emitted yet."""


_WindowSnapshot = tuple[_Window, int, int, int, tuple[tuple[str, ...], ...], bool]
_Snapshot = tuple[int, int, tuple[tuple[int, datetime], ...], tuple[_WindowSnapshot, ...]]
"""Version, number of source partitions, their watermarks, and the open windows."""


def window_start(time: datetime, length: timedelta) -> datetime:
    """Return the start of the window that holds `time`; windows are aligned to 1970-01-01 UTC."""
    return time - (time - _EPOCH) % length


def stream_watermark(reported: dict[int, datetime], source_partitions: int) -> datetime | None:
    """Return the minimum over all source partitions, or None until each has reported."""
    if source_partitions < 1 or any(index not in reported for index in range(source_partitions)):
        return None
    return min(reported[index] for index in range(source_partitions))


class _Windows(StatefulBatchLogic[_Partial | Watermark, WindowAggregate | Failure, _Snapshot]):
    """Folds partial aggregates into open windows, and closes them."""

    def __init__(self, length: timedelta, lateness: timedelta, snapshot: _Snapshot | None) -> None:
        self._length = length
        self._lateness = lateness
        self._source_partitions = 0
        self._reported: dict[int, datetime] = {}
        self._windows: dict[_Window, _Open] = {}
        if snapshot is not None:
            _, self._source_partitions, reported, windows = snapshot
            self._reported = dict(reported)
            self._windows = {
                window: _Open(count, document_count, word_sum, list(event_ids), changed)
                for window, count, document_count, word_sum, event_ids, changed in windows
            }

    def on_batch(self, values: list[_Partial | Watermark]) -> tuple[Iterable[WindowAggregate | Failure], bool]:
        emitted: list[WindowAggregate | Failure] = []
        # A watermark speaks of earlier epochs only, so its place among the items of its own epoch has no meaning.
        for value in values:
            if isinstance(value, Watermark):
                self._source_partitions = value.source_partitions
                before = self._reported.get(value.source_partition, value.time)
                self._reported[value.source_partition] = max(before, value.time)
            elif self._is_closed(value.window):
                emitted.extend(self._late(value))
            else:
                self._fold(value)
        closed = sorted(window for window in self._windows if self._is_closed(window))
        emitted.extend(self._row(window, self._windows.pop(window)) for window in closed)
        return emitted, StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[WindowAggregate | Failure], bool]:
        # The end of the process is not the end of the stream: what is half full stays in the state.
        if stopping.requested():
            return [], StatefulBatchLogic.RETAIN
        rows = []
        for window, opened in sorted(self._windows.items(), key=lambda item: item[0]):
            if opened.changed:
                opened.changed = False
                rows.append(self._row(window, opened))
        return rows, StatefulBatchLogic.RETAIN

    def snapshot(self) -> _Snapshot:
        return (
            STATE_VERSION,
            self._source_partitions,
            tuple(sorted(self._reported.items())),
            tuple(
                (
                    window,
                    opened.count,
                    opened.document_count,
                    opened.word_sum,
                    tuple(opened.event_ids),
                    opened.changed,
                )
                for window, opened in self._windows.items()
            ),
        )

    def _is_closed(self, window: _Window) -> bool:
        watermark = stream_watermark(self._reported, self._source_partitions)
        return watermark is not None and window[0] + self._length + self._lateness <= watermark

    def _fold(self, value: _Partial) -> None:
        opened = self._windows.setdefault(value.window, _Open())
        opened.count += len(value.events)
        opened.document_count += value.document_count
        opened.word_sum += value.word_sum
        opened.event_ids.append(tuple(event.event_id for event in value.events))
        opened.changed = True

    def _row(self, window: _Window, opened: _Open) -> WindowAggregate:
        start, source_type = window
        return WindowAggregate(
            window_start=start,
            window_end=start + self._length,
            source_type=source_type,
            count=opened.count,
            document_count=opened.document_count,
            word_sum=opened.word_sum,
            event_ids=tuple(sorted(event_id for batch in opened.event_ids for event_id in batch)),
        )

    def _late(self, value: _Partial) -> Iterator[Failure]:
        start, source_type = value.window
        for event in value.events:
            yield Failure(
                step=STEP,
                error="LateEvent",
                message=(
                    f"arrived at {event.record.arrival_time.isoformat()}, but the window "
                    f"{start.isoformat()} to {(start + self._length).isoformat()} of source type "
                    f'"{source_type}" is closed: the document is stored, only the window does not count it'
                ),
                record=event.record,
                failed_at=datetime.now(UTC),
                event_id=event.event_id,
                s3_key=event.s3_key,
            )


@operator
def tumbling(
    step_id: str,  # noqa: ARG001 - the decorator reads it
    documents: Stream[Document],
    watermarks: Stream[Watermark],
    *,
    length: timedelta,
    lateness: timedelta,
) -> WindowsOut:
    """Aggregate documents by window of arrival time and source_type.

    A window of `length`, aligned to 1970-01-01 UTC, closes and is emitted when its end plus `lateness` is not after
    the stream's watermark, the minimum over all source partitions. At the end of input all open windows that have
    changed are emitted as provisional rows and stay in the state; a later run completes them, and its row replaces
    the provisional one. A flow that is stopped emits none. A document whose window is closed becomes a `Failure`; it
    is never counted twice or lost without a trace. Deletions count as events, not as documents; revived events were
    counted when they were new.

    Guarantee: a watermark speaks of earlier epochs, so the closed windows are the same for every split into batches,
    order within an epoch, number of workers and restart, as long as no document breaks a promise that is made in
    its own epoch. State: the open windows; one key, hence one worker, but
    micro-batches are aggregated where they are and only partial aggregates travel.
    """
    partials = op.flat_map_batch("aggregate", documents, partial(_aggregate, length))
    merged = op.merge("merge", partials, watermarks)
    keyed = op.key_on("key", merged, _the_key)
    folded = op.key_rm("unkey", op.stateful_batch("fold", keyed, partial(_Windows, length, lateness)))
    split = op.branch("split", folded, _is_aggregate)
    return WindowsOut(aggregates=split.trues, late=split.falses)  # type: ignore[arg-type]


def _aggregate(length: timedelta, documents: list[Document]) -> list[_Partial]:
    groups: dict[_Window, list[Document]] = {}
    for document in documents:
        event = document.event
        if not event.revived:
            window = (window_start(event.record.arrival_time, length), event.source_type)
            groups.setdefault(window, []).append(document)
    return [
        _Partial(
            window,
            document_count=sum(not document.event.deleted for document in group),
            word_sum=sum(document.word_count for document in group if not document.event.deleted),
            events=tuple(_counted(document.event) for document in group),
        )
        for window, group in groups.items()
    ]


def _counted(event: Event) -> _Counted:
    return _Counted(event.event_id, event.s3_key, event.record)


def _the_key(_: _Partial | Watermark) -> str:
    return "all"


def _is_aggregate(item: WindowAggregate | Failure) -> TypeGuard[WindowAggregate]:
    return isinstance(item, WindowAggregate)
