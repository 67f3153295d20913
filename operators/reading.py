"""How much of a note the models read: a note of many megabytes must not hold up all that come after it."""

from __future__ import annotations

from collections.abc import Sequence

from core.records import Chunk

__all__ = ["end_of_reading", "read_chunks"]


def end_of_reading(text: str, most: int | None) -> int:
    """Return where models stop reading: at the end of `text`, or of a word after at most `most` characters."""
    if most is None or len(text) <= most:
        return len(text)
    place = most
    while place > 0 and not text[place].isspace():
        place -= 1
    # A text without a space is cut where it must be.
    return place or most


def read_chunks(text: str, chunks: Sequence[Chunk], most: int | None) -> int:
    """Return how many of the `chunks` of `text` lie in what models read; the first always does."""
    end = end_of_reading(text, most)
    return max(sum(chunk.end <= end for chunk in chunks), min(len(chunks), 1))
