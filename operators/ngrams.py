"""Finds the candidates for concepts as KeyBERT does by itself: every run of one to three words of a text."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

__all__ = ["candidates"]

# KeyBERT compares every candidate with every other: so much text makes about 7,000, and a matrix of 200 MB.
READ_CHARACTERS = 30_000


def candidates(text: str) -> list[str]:
    """Return each run of one to three words of `text`, lower-cased, without English stop words, in sorted order.

    Words are what scikit-learn's vectoriser takes for words, two characters at least; stop words are left out before
    runs are made. Only the first 30,000 characters are read, to the end of a word.
    """
    if len(text) > READ_CHARACTERS:
        text = _to_last_space(text[:READ_CHARACTERS])
    return sorted(set(_analyzer()(text)))


def _to_last_space(text: str) -> str:
    # What was cut in two is no word; a text that is one word stays as it is.
    words = text.rsplit(maxsplit=1)
    return words[0] if len(words) > 1 and not text[-1].isspace() else text


@lru_cache(maxsize=1)
def _analyzer() -> Callable[[str], list[str]]:
    # Here, not at the top: the import takes a second, and building a flow must not pay for it.
    from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]

    # The seed's parameters, otherwise KeyBERT's own.
    analyzer: Callable[[str], list[str]] = CountVectorizer(ngram_range=(1, 3), stop_words="english").build_analyzer()
    return analyzer
