"""Finds people, organisations, places and other names in the whole text of a note."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import bytewax.operators as op
from bytewax.dataflow import Stream, operator

from core.records import Note
from operators.fresh import unless_reused
from operators.reading import end_of_reading

if TYPE_CHECKING:
    from models.tagger import Tagger

__all__ = ["find", "with_entities"]


@operator
def find(
    step_id: str,  # noqa: ARG001 - bytewax reads it
    notes: Stream[Note],
    *,
    model: str | None,
    threads: int | None,
    most_characters: int | None = None,
) -> Stream[Note]:
    """Add every occurrence of an entity to each note, with offsets into `note.document.text`.

    A note longer than `most_characters` is read up to there.

    Stateless, order kept; a micro-batch goes through the model together. Notes whose entities were found with their
    vectors pass untouched, deleted notes too, and all notes do when `model` is None. `model` is a name for
    `models.tagger.load_tagger`, loaded once per process and shared by its workers: when the first text arrives,
    unless `models.start` has loaded it before. Raises ModelError when it can't be.
    """

    def find_in_batch(batch: list[Note]) -> list[Note]:
        return unless_reused(batch, find_in_fresh)

    def find_in_fresh(fresh: list[Note]) -> list[Note]:
        if model is None or not any(map(_is_to_be_read, fresh)):
            return fresh
        # Here, not at the top: importing torch takes seconds, and building a flow must not pay for it.
        from models.tagger import load_tagger

        return with_entities(load_tagger(model, threads=threads), fresh, most_characters=most_characters)

    return op.flat_map_batch("find", notes, find_in_batch)


def with_entities(tagger: Tagger, notes: Sequence[Note], *, most_characters: int | None = None) -> list[Note]:
    """Return the notes in order, those that are to be read with their entities."""
    texts = [note.document.text for note in notes if _is_to_be_read(note)]
    found = iter(tagger.find([text[: end_of_reading(text, most_characters)] for text in texts]))
    return [
        dataclasses.replace(note, entities=tuple(next(found))) if _is_to_be_read(note) else note for note in notes
    ]


def _is_to_be_read(note: Note) -> bool:
    return not note.event.deleted and bool(note.document.text) and not note.entities_found
