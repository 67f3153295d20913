"""Chooses from a replayed stream what the tables know already: a replay repeats, it decides nothing anew.

A note is replaced only from the record that it is from now. So a replay that ends before a note's newest version, or
begins after it, never rolls the note back; and what failed, was a duplicate or was deleted stays so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import bytewax.operators as op
from bytewax.dataflow import Stream, operator

from core.records import Event, Position, WindowAggregate

__all__ = ["Known", "digest", "events", "windows"]

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Known:
    """What the tables hold: about 200 bytes of memory for each event in bronze.notes.

    `current` has the event of each note in silver.notes, `counted` each event of bronze.notes, both as digests with
    their positions; `window_counts` says how many of the latter arrived in each window (start, source_type).
    """

    current: frozenset[bytes]
    counted: frozenset[bytes]
    window_counts: Mapping[tuple[datetime, str], int]

    def select(self, event: Event) -> Event | None:
        """Return the event as the replay is to see it, None when the tables do not know it.

        An event that is not its note's current one only counts in its window; one that brought an old version back
        was counted when it was new.
        """
        name = digest(event.event_id, event.position)
        current, counted = name in self.current, name in self.counted
        if not (current or counted):
            return None
        return replace(event, outdated=not current, revived=not counted, redrive=None)

    def is_complete(self, aggregate: WindowAggregate) -> bool:
        """Tell whether a window has all its events; it lacks some at the ends of a range, or when some failed."""
        return aggregate.count == self.window_counts.get((aggregate.window_start, aggregate.source_type))


def digest(event_id: str, position: Position) -> bytes:
    """Digest of an event at its place in the stream, whichever reading the position comes from."""
    # No shard has a blank in its name, and no event id either.
    text = f"{event_id} {position.stream_shard_id} {position.sequence_number} {position.subsequence_number}"
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


@operator
def events(
    step_id: str,  # noqa: ARG001 - the decorator reads it
    up: Stream[Event],
    *,
    known: Known,
) -> Stream[Event]:
    """Pass the events that the tables know; order is kept. Stateless."""

    def select_batch(batch: list[Event]) -> list[Event]:
        return [selected for event in batch if (selected := known.select(event)) is not None]

    return op.flat_map_batch("select", up, select_batch)


@operator
def windows(
    step_id: str,  # noqa: ARG001 - the decorator reads it
    up: Stream[WindowAggregate],
    *,
    known: Known,
) -> Stream[WindowAggregate]:
    """Pass the windows that have all their events, so that none is replaced by a part of itself. Stateless."""
    return op.filter("complete", up, known.is_complete)
