"""Finds people, organisations, places and other names in the whole text of a note."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import bytewax.operators as op
from bytewax.dataflow import Stream, operator

from core.records import Note

if TYPE_CHECKING:
    from models.tagger import Tagger

__all__ = ["find", "with_entities"]

_LOADING = threading.Lock()
_SLICE_CHARS = 1_000_000
"""Texts are read in slices of about this many characters: a micro-batch of long notes stays small in memory."""


@operator
def find(
    step_id: str,  # noqa: ARG001 - bytewax reads it
    notes: Stream[Note],
    *,
    model: str | None,
    threads: int | None,
) -> Stream[Note]:
    """Add every occurrence of an entity to each note, with offsets into `note.document.text`.

    Stateless, order kept; a micro-batch goes through the model together. Deleted notes pass untouched, and all notes
    do when `model` is None. `model` is a name for `models.tagger.load_tagger`; it is loaded when the first text
    arrives, once per process, and shared by its workers. Raises ModelError when it can't be loaded.
    """

    def find_in_batch(batch: list[Note]) -> list[Note]:
        if model is None or not any(map(_has_text, batch)):
            return batch
        return with_entities(_tagger(model, threads), batch)

    return op.flat_map_batch("find", notes, find_in_batch)


def with_entities(tagger: Tagger, notes: Sequence[Note]) -> list[Note]:
    """Return the notes in order, those that are not deleted with their entities."""
    found = dict[int, Note]()
    waiting: list[int] = []
    chars = 0
    for number, note in enumerate(notes):
        if not _has_text(note):
            continue
        waiting.append(number)
        chars += len(note.document.text)
        if chars >= _SLICE_CHARS:
            found |= _read(tagger, notes, waiting)
            waiting, chars = [], 0
    found |= _read(tagger, notes, waiting)
    return [found.get(number, note) for number, note in enumerate(notes)]


def _has_text(note: Note) -> bool:
    return not note.event.deleted and bool(note.document.text)


def _read(tagger: Tagger, notes: Sequence[Note], numbers: Sequence[int]) -> dict[int, Note]:
    entities = tagger.find([notes[number].document.text for number in numbers])
    return {
        number: dataclasses.replace(notes[number], entities=tuple(some))
        for number, some in zip(numbers, entities, strict=True)
    }


def _tagger(model: str, threads: int | None) -> Tagger:
    # Workers are threads: without the lock each would load the model when the first notes arrive.
    with _LOADING:
        return _loaded(model, threads)


@cache
def _loaded(model: str, threads: int | None) -> Tagger:
    # Here, not at the top: importing torch takes seconds, and building a flow must not pay for it.
    from models.tagger import load_tagger

    return load_tagger(model, threads=threads)
