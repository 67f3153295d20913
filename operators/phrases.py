"""Finds the phrases of a text that could be its concepts: runs of one to three words that a reader reads as one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # type: ignore[import-untyped]

__all__ = ["candidates"]

# Longer texts have said by then what they are about; without it one huge text could hold up the stream.
READ_CHARACTERS = 200_000
MOST_WORDS = 3
LONGEST_WORD = 25

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://\S+|\bwww\.\S+", re.IGNORECASE)
# A terminal prompt, an import or an assignment begins a line of a program, not of prose.
_PROGRAM_LINE = re.compile(
    r"\s*(>>>|\.\.\. |[$%#] |#!|import \w|from [\w.]+ import\b|(def|class) \w+\s*[(:]|[\w.\[\]]+ ?= )"
)
# What stands around a word in prose, or parts it from the next; any other sign makes it code.
_OPENING = "([{<\"'“‘«*_`"
_CLOSING = ")]}>\"'”’»*_`.,;:!?…"
_APART = re.compile(r"(?:[—–/|]|--|[,;:](?=\D))")
# Letters, joined by hyphens, with a short number at the end at most: peer-to-peer, utf-8, python3; and c++, c#.
_WORD = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]+)*(?:-?\d{1,3})?|[^\W\d_](?:\d{1,3}|\+\+|#)")
_INNER_CAPITAL = re.compile(r"[a-z]+[A-Z]")


def candidates(text: str, *, limit: int) -> list[str]:
    """Return at most `limit` phrases of one to three words of `text`: lower-cased, each once, best first.

    A phrase crosses no punctuation, line break or stop word, and holds no number, hash, address or code. The more
    frequent come first, then the earlier. Only the first 200,000 characters are read; time is linear in them.
    """
    counts: Counter[str] = Counter()
    for run in _runs(text[:READ_CHARACTERS]):
        for start in range(len(run)):
            for end in range(start + 1, min(start + MOST_WORDS, len(run)) + 1):
                counts[" ".join(run[start:end])] += 1
    # most_common keeps the order of first sight among equals, with a limit as without.
    return [phrase for phrase, _ in counts.most_common(limit)]


def _runs(text: str) -> Iterator[list[str]]:
    # Words that follow each other with nothing but spaces between.
    for line in text.splitlines():
        if _PROGRAM_LINE.match(line):
            continue
        run: list[str] = []
        for token in _APART.sub(" \0 ", _ADDRESS.sub(" \0 ", line)).split():
            core = token.lstrip(_OPENING)
            opened = len(core) < len(token)
            word = core.rstrip(_CLOSING)
            closed = len(word) < len(core)
            if opened and run:
                yield run
                run = []
            kept = _kept(word)
            if kept:
                run.append(kept)
            if run and (closed or not kept):
                yield run
                run = []
        if run:
            yield run


def _kept(word: str) -> str | None:
    # The word as it stands in a phrase, or None for a stop word and whatever is no word.
    if len(word) > LONGEST_WORD or not _WORD.fullmatch(word) or _INNER_CAPITAL.match(word):
        return None
    lowered = word.lower()
    return None if lowered in ENGLISH_STOP_WORDS else lowered
