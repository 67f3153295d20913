"""Names the language of a text."""

from __future__ import annotations

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

__all__ = ["load", "of"]

MIN_CHARACTERS = 20
# The identifier walks bytes in Python (about 5 MB a second), and more text does not change its mind.
SAMPLE_CHARACTERS = 4_000


@cache
def load() -> LanguageIdentifier:
    """Load the identifier once; it takes a few tenths of a second."""
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def of(text: str) -> str:
    """Return the ISO 639-1 code of the text's language; empty when it is shorter than 20 characters."""
    sample = text[:SAMPLE_CHARACTERS]
    if len(sample.strip()) < MIN_CHARACTERS:
        return ""
    return str(load().classify(sample)[0])
