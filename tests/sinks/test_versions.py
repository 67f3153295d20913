"""Which of the notes that come again a store lacks: without I/O."""

from __future__ import annotations

from core.markers import Marker
from core.records import Note
from metadata_notes import note
from sinks.versions import newest_versions, uncommitted


def test_versions_from_another_shard_count_as_they_come() -> None:
    first, second = note("n1", 9, shard="shard-0"), note("n1", 1, shard="shard-1")
    assert newest_versions([first, second])["n1"] is second
    assert newest_versions([second, first])["n1"] is first


def test_rows_beyond_the_marker_are_uncommitted() -> None:
    notes = [note("n1", 1), note("n2", 2), note("n3", 1, shard="shard-1")]
    stored = {"n1": notes[0].event.position}
    assert uncommitted(notes, Marker({"shard-0": (1, 0)}), stored, leaves_nothing=_deleted) == notes[1:]


def test_a_row_that_the_marker_passed_over_is_uncommitted_with_all_that_came_after_it() -> None:
    marker, notes = Marker({"shard-0": (9, 0)}), [note("n1", number) for number in range(1, 5)]
    older, newer = notes[1].event.position, notes[3].event.position
    assert uncommitted(notes, marker, {"n1": older}, leaves_nothing=_deleted) == notes[2:]
    assert uncommitted(notes, marker, {"n1": newer}, leaves_nothing=_deleted) == []
    assert uncommitted(notes, marker, {}, leaves_nothing=_deleted) == notes
    gone = note("n1", 5, deleted=True)
    assert uncommitted([gone], marker, {}, leaves_nothing=_deleted) == []
    assert uncommitted([*notes, gone], marker, {}, leaves_nothing=_deleted) == [*notes, gone]


def _deleted(found: Note) -> bool:
    return found.event.deleted
