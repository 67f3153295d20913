"""Finds the phrases of a text that could be its concepts: runs of one to three words that a reader reads as one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

__all__ = ["candidates"]

# Longer texts have said by then what they are about; without it one huge text could hold up the stream.
READ_CHARACTERS = 200_000
MOST_WORDS = 3
LONGEST_WORD = 25

# A terminal prompt, an import, a definition or an assignment begins a line of a program, not of prose.
_PROGRAM_LINE = re.compile(
    r"\s*(>>>|\.\.\. |[$%] |#!|import [\w.]+( as \w+)?\s*$|from [\w.]+ import\b"
    r"|(def|class) \w+\s*[(:]|[\w.\[\]]+ ?= )"
)
# reStructuredText: directives, link targets and options (`.. |ci| image:: …`, `:alt: …`); pictures in text (`|ci|`).
_DIRECTIVE = re.compile(r"\s*(\.\. |__ |:[\w-]+:(\s|$))")
_PICTURE = re.compile(r"(?<!\S)\|[^\s|](?:[^|]{0,60}[^\s|])?\|(?!\S)")
# What stands around a word in prose, or parts it from the next; any other sign makes it code.
_OPENING = "([{<\"'\u201c\u2018«*_`"
_CLOSING = ")]}>\"'\u201d\u2019»*_`.,;:!?…"
_APART = re.compile(r"[\u2013\u2014/|]|(?<=\w)--(?=\w)|[,;:](?=\D)")
# Letters, joined by hyphens, with a short number at the end at most: peer-to-peer, utf-8, python3; and c++, c#.
_WORD = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]+)*(?:-?\d{1,3})?|[^\W\d_](?:\d{1,3}|\+\+|#)")
_INNER_CAPITAL = re.compile(r"[a-z]+[A-Z]")


def candidates(text: str, *, limit: int) -> list[str]:
    """Return at most `limit` phrases of one to three words of `text`: lower-cased, each once, best first.

    A phrase crosses no punctuation, line break or stop word, and holds no number, hash, address or code. The more
    frequent come first, then the earlier; where a phrase stands between two such borders, with no further word, it
    counts twice, because a cut through a longer run of words is often no phrase. Only the first 200,000 characters
    are read; time is linear in them.
    """
    counts: Counter[str] = Counter()
    for run in _runs(text[:READ_CHARACTERS]):
        for start in range(len(run)):
            for end in range(start + 1, min(start + MOST_WORDS, len(run)) + 1):
                counts[" ".join(run[start:end])] += 2 if end - start == len(run) else 1
    # most_common keeps the order of first sight among equals, with a limit as without.
    return [phrase for phrase, _ in counts.most_common(limit)]


def _runs(text: str) -> Iterator[list[str]]:
    # Words that follow each other with nothing but spaces between.
    for line in text.splitlines():
        if _PROGRAM_LINE.match(line) or _DIRECTIVE.match(line):
            continue
        run: list[str] = []
        for part in _parts(line):
            core = part.lstrip(_OPENING)
            opened = len(core) < len(part)
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


def _parts(line: str) -> Iterator[str]:
    # What stands between spaces, dashes and slashes; a NUL, which is no word, for an address or a path.
    for token in _PICTURE.sub(" \0 ", line).split():
        if "://" in token or "www." in token or token.count("/") > 1:
            yield "\0"
        else:
            yield from _APART.sub(" \0 ", token).split()


def _kept(word: str) -> str | None:
    # The word as it stands in a phrase, or None for a stop word and whatever is no word.
    if len(word) > LONGEST_WORD or not _WORD.fullmatch(word) or _INNER_CAPITAL.match(word):
        return None
    lowered = word.lower()
    return None if lowered in _stop_words() else lowered


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    # KeyBERT's own default. Here, not at the top: the import takes a second, and building a flow must not pay for it.
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # type: ignore[import-untyped]

    words: frozenset[str] = ENGLISH_STOP_WORDS
    return words
