"""Keeps notes whose results were computed before out of the steps that compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.records import Note

__all__ = ["unless_reused"]


def unless_reused(notes: Sequence[Note], compute: Callable[[list[Note]], Sequence[Note]]) -> list[Note]:
    """Return the notes in order, those without kept results as `compute` returns them."""
    computed = iter(compute([note for note in notes if not note.reused]))
    return [note if note.reused else next(computed) for note in notes]
