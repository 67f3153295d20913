"""Labels of word pieces become spans of characters: types, words that belong together, edges of names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["TYPES", "kind_of", "may_be_name", "spans", "trimmed"]

TYPES = {
    "PER": "PER", "PERSON": "PER", "ORG": "ORG", "ORGANIZATION": "ORG", "LOC": "LOC", "LOCATION": "LOC", "GPE": "LOC",
    "MISC": "MISC", "MISCELLANEOUS": "MISC",
}  # fmt: skip
"""What models call the types of entities, and what we do."""

_PARAGRAPH = re.compile(r"\n\s*\n")
# The last six are typographic dashes and quotation marks.
_EDGES = frozenset("-*_`'\":;,/|<>=~^\u2013\u2014\u2018\u2019\u201c\u201d")


def spans(
    text: str,
    offsets: Sequence[tuple[int, int]],
    words: Sequence[int | None],
    probabilities: npt.NDArray[np.float32],
    kinds: Sequence[tuple[str, str]],
) -> Iterator[tuple[str, int, int, float]]:
    """Join words to (type, start, end, score); a word has the label of its first piece."""
    best = probabilities.argmax(axis=1).tolist()
    kind, start, end, scores = "", 0, 0, [0.0]
    token = 0
    while token < len(best):
        last = token
        while last + 1 < len(best) and words[last + 1] == words[token] and words[token] is not None:
            last += 1
        limit = offsets[last + 1][0] if last + 1 < len(best) else len(text)
        word_start, word_end = offsets[token][0], _with_marks(text, offsets[last][1], limit)
        tag, word_kind = kinds[best[token]]
        if kind and (tag != "I" or word_kind != kind or _PARAGRAPH.search(text, end, word_start)):
            yield kind, start, end, float(np.mean(scores))
            kind = ""
        if word_kind and not kind:
            kind, start, scores = word_kind, word_start, []
        if word_kind:
            end = word_end
            scores.append(float(probabilities[token, best[token]]))
        token = last + 1
    if kind:
        yield kind, start, end, float(np.mean(scores))


def _with_marks(text: str, end: int, limit: int) -> int:
    # Tokenizers that strip accents leave a combining mark out of the word it belongs to.
    while end < limit and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Take white space, quotes and dashes off both ends of a span."""
    while start < end and _is_edge(text[start]):
        start += 1
    while start < end and _is_edge(text[end - 1]):
        end -= 1
    return start, end


def _is_edge(character: str) -> bool:
    # Full stops and brackets may belong to a name: Corp., Union (UK).
    return character.isspace() or character in _EDGES


def may_be_name(name: str) -> bool:
    """Tell whether a text is more than lower-case letters."""
    return name.lower() != name or not any(map(str.islower, name))


def kind_of(label: str) -> tuple[str, str]:
    """Split a label into B or I, and our type; without a prefix neighbours of one type are one entity."""
    tag, dash, kind = label.partition("-")
    if not dash or tag not in {"B", "I"}:
        tag, kind = "I", label
    return (tag, TYPES[kind.upper()]) if kind.upper() in TYPES else ("O", "")
