"""Drops events that were seen before, and marks those that bring an older version of a note back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import bytewax.operators as op
from bytewax.dataflow import Stream, operator
from bytewax.operators import StatefulBatchLogic

from core.records import Event, Redrive
from core.telemetry import DUPLICATES

__all__ = ["bucket_of", "unique"]

STATE_VERSION = 1
BUCKET_DIGITS = 3
DIGEST_BYTES = 16
# Old entries never count, so taking them out of memory can wait until it is worth a pass over the bucket.
EVICTIONS_PER_RETENTION = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_Snapshot = tuple[int, int, tuple[tuple[bytes, tuple[tuple[bytes, int], ...]], ...]]
"""Version, arrival of the newest event, and for each note its events with their arrival; microseconds since 1970."""


def bucket_of(note_id: str) -> str:
    """Return the bucket of a note: one of 4,096, named by 3 hex digits."""
    return hashlib.sha256(note_id.encode()).hexdigest()[:BUCKET_DIGITS]


class _Bucket(StatefulBatchLogic[Event, Event, _Snapshot]):
    """What was seen of the notes of one bucket.

    For each note the digests of its event ids with their arrival, the note's latest event last. Digests, because
    ids that a stranger chose may have any length.
    """

    def __init__(self, retention: timedelta, snapshot: _Snapshot | None) -> None:
        self._retention = retention // _MICROSECOND
        self._notes: dict[bytes, dict[bytes, int]] = {}
        self._newest = 0
        if snapshot is not None:
            _, self._newest, notes = snapshot
            self._notes = {note: dict(events) for note, events in notes}
        self._evict_at = self._newest

    def on_batch(self, values: list[Event]) -> tuple[Iterable[Event], bool]:
        passed: list[Event] = []
        for event in values:
            arrival = (event.record.arrival_time - _EPOCH) // _MICROSECOND
            self._newest = max(self._newest, arrival)
            if event.redrive is not None:
                passed.extend(self._redriven(event, event.redrive, arrival))
                continue
            note, event_id = _digest(event.note_id), _digest(event.event_id)
            events = self._notes.setdefault(note, {})
            seen = events.get(event_id)
            horizon = self._newest - self._retention
            known = seen is not None and seen >= horizon
            # Old entries that are still in memory must not decide anything, or a restart would decide otherwise.
            latest = known and event_id == next(name for name in reversed(events) if events[name] >= horizon)
            # Taken out first, so that the latest event is always the last one of the dictionary.
            events.pop(event_id, None)
            events[event_id] = max(arrival, seen or 0)
            if latest:
                DUPLICATES.inc()
            else:
                passed.append(replace(event, revived=True) if known else event)
        if self._newest >= self._evict_at:
            self._notes = _evicted(self._notes, self._newest - self._retention)
            self._evict_at = self._newest + self._retention // EVICTIONS_PER_RETENTION
        return passed, not self._notes

    def _redriven(self, event: Event, redrive: Redrive, arrival: int) -> Iterator[Event]:
        """Pass each attempt once, although the event was seen when it failed; an older version does not return."""
        events = self._notes.setdefault(_digest(event.note_id), {})
        horizon = self._newest - self._retention
        # No event id has this separator.
        event_id, attempt = _digest(event.event_id), _digest(f"{event.event_id}#{redrive.attempt}")
        if events.get(attempt, horizon - 1) >= horizon:
            DUPLICATES.inc()
            return
        latest = next((name for name in reversed(events) if events[name] >= horizon), event_id)
        first = (redrive.arrival_time - _EPOCH) // _MICROSECOND
        outdated = event.outdated or (latest != event_id and events[latest] > first)
        if not outdated:
            latest = event_id
        # What is known of the note is remembered as long as the attempt, and the latest event stays the last one.
        for name in (attempt, event_id, latest):
            events[name] = max(arrival, events.pop(name, arrival))
        yield replace(event, outdated=outdated)

    def snapshot(self) -> _Snapshot:
        horizon = self._newest - self._retention
        notes = _evicted(self._notes, horizon)
        return STATE_VERSION, self._newest, tuple((note, tuple(events.items())) for note, events in notes.items())


@operator
def unique(
    step_id: str,  # noqa: ARG001 - the decorator reads it
    events: Stream[Event],
    *,
    retention: timedelta,
) -> Stream[Event]:
    """Pass each event once.

    An event whose id is its note's latest is dropped: a producer's retry. One whose id was seen before, but is not
    the latest, passes with `revived` set: the note went back to an older version (so does a retry that arrives after
    a newer version; the two can't be told apart). Deletions have ids of their own and follow the same rule.

    A redriven event was seen when it failed, so each attempt passes once, whatever was seen. It is marked as outdated
    when the note's latest event arrived after the one that failed: it is stored, but the note stays as it is.

    Ids are remembered for `retention` after they arrived, measured by the newest arrival in the same bucket, so
    memory is bounded by the events of that time (a note with one version takes about 400 bytes, 55 in a snapshot) and
    a replay decides as the first run did.

    Order: versions of a note stay in order, since all of a note is in one of 4,096 buckets, the unit of
    parallelism. State is part of the recovery snapshot.
    """
    keyed = op.key_on("bucket", events, _bucket_of_event)
    kept = op.stateful_batch("seen", keyed, partial(_Bucket, retention))
    return op.key_rm("unkey", kept)


def _bucket_of_event(event: Event) -> str:
    return bucket_of(event.note_id)


def _evicted(notes: Mapping[bytes, dict[bytes, int]], horizon: int) -> dict[bytes, dict[bytes, int]]:
    """Return `notes` without events that arrived before `horizon`, and without notes that have no other."""
    kept = {
        note: {event_id: arrival for event_id, arrival in events.items() if arrival >= horizon}
        for note, events in notes.items()
    }
    return {note: events for note, events in kept.items() if events}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
