"""One source partition: lists the stream's shards, reads its own side by side, hands their records on in order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from bytewax.inputs import StatefulSourcePartition

from core import stopping
from core.records import RawRecord, Watermark
from core.telemetry import RECORDS
from sources.kinesis_calls import Calls
from sources.kinesis_client import DataLossError, Listing, ShardGoneError, StreamReader
from sources.kinesis_figures import FiguresBoard, ShardFigures
from sources.kinesis_loss import count_loss, loss_error
from sources.kinesis_notices import Board, Notice
from sources.kinesis_reading import ShardReading
from sources.kinesis_shards import (
    Shard,
    admit,
    begun,
    foreign_children,
    low_watermark,
    pin_latest,
    readable,
    unbounded,
    waits_in_vain,
)
from sources.kinesis_state import PartitionState
from sources.kinesis_survey import Survey
from sources.pace import Pace
from sources.phase import Phase

__all__ = ["Item", "KinesisPartition"]

Item = RawRecord | Watermark | Notice

WATERMARK_STEP = timedelta(seconds=1)
# What is read and not handed on yet; calls that are under way when it is reached bring at most 10 MB each.
HELD_BYTES = 32 * 1024 * 1024
# How long to wait for a call that is under way before looking again: a part of the time that it has taken so far, and
# the longest where nobody waits for the answer: each look takes processor time from an idle flow.
SHORTEST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.001, 0.02
LONGEST_SLEEP_SECONDS = 1.0
FIGURES_SECONDS = 15.0


class KinesisPartition(StatefulSourcePartition[Item, Mapping[str, Any]]):
    """Reads the shards of one partition.

    A read that brought more than `batch_records` is handed on in pieces, so that slow steps behind never get so much
    at once that they hold up the epoch.
    """

    def __init__(
        self,
        reader: StreamReader,
        state: PartitionState,
        *,
        partition: int,
        pin: bool,
        batch_records: int,
        until_caught_up: bool,
        on_data_loss: Literal["fail", "warn"],
        patience: timedelta,
        epoch: timedelta,
        calls: Calls,
        board: Board,
        publish: Callable[[Sequence[ShardFigures]], None] | None = None,
        ahead: Callable[[Sequence[RawRecord]], None] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`publish` is called on a thread, now and then, with the shards' figures; `ahead` with each batch with the
        records that are likely to be the next.
        """
        self._reader = reader
        self._state = state
        self._partition = partition
        self._pin = pin
        self._pace = Pace(batch_records, epoch.total_seconds())
        self._until_caught_up = until_caught_up
        self._on_data_loss = on_data_loss
        self._patience_seconds = patience.total_seconds()
        self._calls = calls
        self._board = board
        self._publish = publish
        self._ahead = ahead
        self._now = now
        self._monotonic = monotonic
        self._uniform = uniform
        self._survey = Survey(
            reader, calls, patience_seconds=patience.total_seconds(), now=monotonic(), uniform=uniform
        )
        self._publish_due = monotonic()
        self._readings: dict[str, ShardReading] = {}
        self._released: frozenset[str] = frozenset()
        self._announced: set[tuple[str, int]] = set()
        self._end_announced = False
        self._notices: list[Notice] = []
        self._figures = FiguresBoard()
        self._phase = Phase(epoch.total_seconds(), monotonic())
        self._promise: datetime | None = None
        self._promised: datetime | None = None

    def next_batch(self) -> list[Item]:
        """Return a watermark or notices that are due, else records of one shard; all may be none.

        Raises StopIteration when the flow was stopped, or has caught up and is to end then.
        """
        if stopping.requested():
            raise StopIteration
        self._phase.asked(self._monotonic())
        self._pace.asked(self._monotonic())
        if self._promise is not None:
            self._promised, self._promise = self._promise, None
            return [Watermark(self._partition, self._state.partitions, self._promised)]
        now = self._monotonic()
        self._collect(now)
        self._start(now)
        if self._notices:
            notices, self._notices = self._notices, []
            return list(notices)
        if (ready := self._first_ready()) is not None:
            return [] if self._phase.is_over(now) else list(self._hand_on(ready))
        if self._finished():
            if self._end_announced:
                raise StopIteration
            self._end_announced = True
            others = (number for number in range(self._state.partitions) if number != self._partition)
            return [Notice(other, self._partition) for other in others]
        return []

    def next_awake(self) -> datetime | None:
        """Return when there is something to do next."""
        now = self._monotonic()
        if self._phase.hold_until > now:
            return self._now() + timedelta(seconds=self._phase.hold_until - now)
        if self._promise is not None or self._notices or self._finished() or self._first_ready() is not None:
            return None
        readings = self._readings.values()
        looks = [
            LONGEST_LOOK_SECONDS if reading.idle else _look_seconds(now - reading.called_at)
            for reading in readings
            if reading.called_at is not None
        ]
        dues = [reading.due - now for reading in readings if reading.wants_call]
        if self._survey.under_way:
            looks.append(_look_seconds(now - self._survey.due))
        else:
            dues.append(self._survey.due - now)
        # A promise is made at any time, so nobody sleeps for long.
        return self._now() + timedelta(seconds=max(min([LONGEST_SLEEP_SECONDS, *looks, *dues]), 0.0))

    def snapshot(self) -> Mapping[str, Any]:
        """Return how far each shard was emitted, and note what holds from the next epoch on."""
        # A worker that reads alone waits for none: asked once in an epoch, it was busy with the batch.
        others = not self._board.on_one_worker(self._state.partitions)
        backlog = others and self._first_ready() is not None
        self._phase.epoch_ended(self._monotonic(), backlog=backlog)
        listing = self._survey.listing
        if listing is not None:
            reached = [reading.state.reached for reading in self._readings.values()]
            waiting = unbounded(self._state, listing.shards, self._released)
            promise = low_watermark([*reached, *waiting], listing.time)
            if promise is not None and (self._promised is None or promise - self._promised >= WATERMARK_STEP):
                self._promise = promise
        # All that was noticed by now was emitted in this epoch or before: what is read from here on comes after it.
        released = self._board.drained(self._partition)
        if released != self._released:
            self._released = released
            # Their children may not be known here yet.
            self._survey.soon(self._monotonic())
            self._choose()
        return self._state.to_snapshot()

    def close(self) -> None:
        """Publish the last figures and let the threads end."""
        if self._publish is not None and self._figures.all():
            self._submit_figures(self._publish)
        self._calls.close()

    def _finished(self) -> bool:
        listing = self._survey.listing
        if not self._until_caught_up or listing is None or not self._survey.is_fresh(self._monotonic()):
            return False
        if self._promise is not None or self._notices:
            return False
        open_ends = {
            shard_id
            for shard_id, shard in self._state.shards.items()
            if not (shard.drained or self._caught_up(shard_id))
        }
        # What was noticed in this epoch is not released yet, but will be.
        drained, ended = self._board.drained(self._partition), self._board.ended(self._partition)
        return open_ends <= waits_in_vain(self._state, listing.shards, drained, ended)

    def _caught_up(self, shard_id: str) -> bool:
        reading = self._readings.get(shard_id)
        return reading is not None and reading.caught_up_once and not reading.ready

    def _collect(self, now: float) -> None:
        before = self._survey.listing
        if self._survey.collect(now):
            self._listed(before, now)
        for shard_id, reading in list(self._readings.items()):
            if self._readings.get(shard_id) is not reading:
                continue
            try:
                reading.collect(now, self._survey.horizon(now))
            except DataLossError as error:
                self._lost(shard_id, reading, error, now)

    def _start(self, now: float) -> None:
        self._survey.start(now)
        if sum(reading.held_bytes for reading in self._readings.values()) < HELD_BYTES:
            for reading in self._readings.values():
                if reading.wants_call and reading.due <= now:
                    reading.start(now, self._survey.horizon(now))
        if self._publish is not None and now >= self._publish_due and self._figures.all():
            self._publish_due = now + FIGURES_SECONDS
            self._submit_figures(self._publish)

    def _submit_figures(self, publish: Callable[[Sequence[ShardFigures]], None]) -> None:
        figures = tuple(self._figures.all().values())
        self._calls.submit(lambda: publish(figures))

    def _listed(self, before: Listing | None, now: float) -> None:
        listing = self._survey.listing
        if listing is None:
            return
        if self._pin and isinstance(self._state.start, datetime):
            pinned = pin_latest(self._state.start, listing.server_time)
            self._state = PartitionState(self._state.stream, self._state.partitions, pinned)
        self._pin = False
        self._same_stream(listing)
        horizon = self._survey.horizon(now)
        restored = before is None and self._state.listed
        self._state = admit(
            self._state,
            listing.shards,
            self._partition,
            incarnation=listing.incarnation,
            unseen_at=before.time if before else None,
            horizon=horizon,
        )
        if restored and horizon is not None:
            self._check_unread(horizon)
        self._choose()

    def _same_stream(self, listing: Listing) -> None:
        """See that the stream is the one that the state speaks of."""
        before = self._state.incarnation
        if before is None or before == listing.incarnation:
            return
        message = (
            f'stream "{self._state.stream}" was deleted and made anew: the snapshot is of {before.arn}, created at '
            f"{before.created_at.isoformat()}, this is {listing.incarnation.arn}, created at "
            f"{listing.incarnation.created_at.isoformat()}"
        )
        if self._on_data_loss == "fail":
            raise loss_error(message)
        count_loss("recreated", message)
        self._readings = {}
        self._state = PartitionState(self._state.stream, self._state.partitions, "trim-horizon")

    def _check_unread(self, horizon: datetime) -> None:
        """See that shards of which nothing was read before this run still hold what belongs to the flow."""
        for shard_id, shard in self._state.shards.items():
            if shard.sequence_number is None and not shard.drained and shard.reached and shard.reached < horizon:
                message = (
                    f'of stream "{self._state.stream}", shard {shard_id} is wanted from '
                    f"{shard.reached.isoformat()}, but the stream keeps only what came after {horizon.isoformat()}"
                )
                if self._on_data_loss == "fail":
                    raise loss_error(message)
                count_loss("trimmed", message, span=horizon - shard.reached)
                self._state = self._state.with_shard(shard_id, replace(shard, start="trim-horizon", reached=horizon))

    def _choose(self) -> None:
        """Start to read the shards that have become readable, stop with those that are drained, tell who waits."""
        if self._survey.listing is None:
            return
        listed = self._survey.listing.shards
        before, self._readings = self._readings, {}
        for shard_id in readable(self._state, listed, self._released):
            reading = before.pop(shard_id, None) or ShardReading(
                self._reader,
                self._calls,
                listed.get(shard_id, Shard(shard_id)),
                begun(self._state, listed, shard_id),
                figures=self._figures,
                patience_seconds=self._patience_seconds,
                now=self._monotonic(),
                uniform=self._uniform,
            )
            reading.shard = listed.get(shard_id, reading.shard)
            self._readings[shard_id] = reading
            self._state = self._state.with_shard(shard_id, reading.state)
        for shard_id in before:
            self._figures.forget(shard_id)
        due = foreign_children(self._state, listed, self._partition) - self._announced
        self._announced |= due
        self._notices += [Notice(receiver, self._partition, shard_id) for shard_id, receiver in sorted(due)]

    def _hand_on(self, shard_id: str) -> list[RawRecord]:
        # Taken out and put in again at the end, so that all shards have their turn.
        reading = self._readings[shard_id] = self._readings.pop(shard_id)
        records = reading.take(self._pace.records)
        self._pace.handed_on(len(records), self._monotonic())
        self._phase.handed_on(len(records))
        self._state = self._state.with_shard(shard_id, reading.state)
        if reading.state.drained:
            # Its children may not be known yet; until they are, the last listing holds the watermark back.
            self._survey.soon(self._monotonic())
            self._choose()
        RECORDS.inc(len(records))
        if self._ahead is not None and (following := self._first_ready()) is not None:
            self._ahead(self._readings[following].see(self._pace.records))
        return records

    def _first_ready(self) -> str | None:
        return next((shard_id for shard_id, reading in self._readings.items() if reading.ready), None)

    def _lost(self, shard_id: str, reading: ShardReading, error: DataLossError, now: float) -> None:
        if self._on_data_loss == "fail" or reading.at_horizon:
            raise loss_error(str(error)) from error
        shard, horizon = reading.state, self._survey.horizon(now)
        if isinstance(error, ShardGoneError):
            count_loss("vanished", str(error))
            self._state = self._state.with_shard(shard_id, replace(shard, drained=True))
            self._readings.pop(shard_id)
            self._choose()
        else:
            span = horizon - shard.reached if horizon and shard.reached else None
            count_loss("trimmed", str(error), span=span)
            reading.skip_lost(horizon)


def _look_seconds(under_way: float) -> float:
    return min(max(under_way / 4, SHORTEST_LOOK_SECONDS), LONGEST_LOOK_SECONDS)
