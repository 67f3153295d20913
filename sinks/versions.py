"""Which rows of an epoch a store still has to write: not yet committed, and only the newest version of a note."""

from __future__ import annotations

from collections.abc import Iterable

from core.markers import Marker
from core.records import Note

__all__ = ["newest_versions", "uncommitted"]


def uncommitted(notes: Iterable[Note], marker: Marker) -> list[Note]:
    """Return the notes that `marker` does not cover, in order."""
    return [note for note in notes if not marker.covers(note.event.position)]


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
