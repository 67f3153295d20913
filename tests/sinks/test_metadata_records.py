"""What a note becomes in the metadata store, and what its next version changes: without I/O."""

from __future__ import annotations

from metadata_notes import note
from sinks import metadata_keys, metadata_records


def test_entities_are_counted_by_folded_text_and_the_most_frequent_are_kept() -> None:
    names = [("PER", "Ada"), ("PER", "ADA"), ("PER", "Ada"), ("ORG", "ada")]
    names += [("MISC", f"name {number}") for number in range(metadata_records.MAX_ENTITIES)]
    entities = metadata_records.record_of(note("n1", 1, entities=tuple(names)))["entities"]
    assert entities[0] == {"type": "PER", "text": "Ada", "count": 3, "score": 0.9}
    assert len(entities) == metadata_records.MAX_ENTITIES


def test_changes_never_delete_what_they_put() -> None:
    before = note("n1", 1)
    puts, stale = metadata_records.changes([before], {"n1": None})
    assert stale == set()
    again, stale = metadata_records.changes([note("n1", 1)], {"n1": puts[metadata_keys.note_key("n1")]})
    assert (again, stale) == (puts, set())
