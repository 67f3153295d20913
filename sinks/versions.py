"""Which rows of an epoch a store still has to write: not yet committed, and only the newest version of a note."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from core.markers import Marker
from core.records import Note, Position

__all__ = ["covered_ids", "is_repeated", "newest_versions", "uncommitted"]


def covered_ids(notes: Iterable[Note], marker: Marker) -> list[str]:
    """Return the ids of the notes of which `marker` covers a version."""
    return list(dict.fromkeys(note.event.note_id for note in notes if marker.covers(note.event.position)))


def uncommitted(
    notes: Iterable[Note],
    marker: Marker,
    stored: Mapping[str, Position],
    *,
    leaves_nothing: Callable[[Note], bool],
) -> list[Note]:
    """Return the notes that a store still has to write, in order.

    What `marker` covers came before a restart. It is in the store, unless it failed at that time: `stored` has the
    position of the version that the store holds of each note in `covered_ids`, nothing for one that it has not.
    `leaves_nothing` tells of which versions a store keeps nothing, such as deletions.
    """
    latest = dict(stored)
    lacking = []
    for note in notes:
        position, note_id = note.event.position, note.event.note_id
        if marker.covers(position):
            if is_repeated(position, latest.get(note_id), leaves_nothing=leaves_nothing(note)):
                continue
            latest[note_id] = position
        lacking.append(note)
    return lacking


def is_repeated(position: Position, stored: Position | None, *, leaves_nothing: bool) -> bool:
    """Tell whether a store with the version from `stored` (None: with none) has got the one from `position` already.

    A version that `leaves_nothing`, such as a deletion, is there when nothing is. Across shards, whose numbers can't
    be compared, a version counts as new: whatever came after it comes again too.
    """
    if stored is None:
        return leaves_nothing
    return stored.shard_id == position.shard_id and position <= stored


def newest_versions(notes: Iterable[Note]) -> dict[str, Note]:
    """Return the newest version of each note by its id.

    Within a shard the position decides; versions from different shards keep the order in which they came.
    """
    newest: dict[str, Note] = {}
    for note in notes:
        known = newest.get(note.event.note_id)
        if known is None or not _is_older(note, known):
            newest[note.event.note_id] = note
    return newest


def _is_older(note: Note, known: Note) -> bool:
    ours, theirs = note.event.position, known.event.position
    return ours.shard_id == theirs.shard_id and ours < theirs
