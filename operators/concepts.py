"""Names the concepts of notes: the key phrases that KeyBERT ranks closest to the whole document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, Protocol

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Stream, operator

from core.records import Concept, Note, Vector
from core.telemetry import NOTES
from models.embedder import load_embedder
from models.remembered import Encoder, Remembered
from operators import ngrams, phrases
from operators.fresh import unless_reused

__all__ = ["Maker", "candidates", "describe", "key_phrases"]

Maker = Literal["phrases", "keybert"]
"""Who makes the candidates: `operators.phrases`, or `operators.ngrams` as KeyBERT itself does."""

# Encoding candidates is nearly all of the cost, so their number bounds it. Read side by side on READMEs, the concepts
# out of the 100 best phrases are better than those out of 200 or of all: fewer arbitrary cuts of a sentence.
CANDIDATES = 100
CONCEPTS = 10
DIVERSITY = 0.5


class _Ranker(Protocol):
    # What we use of keybert.KeyBERT, which is untyped.
    def extract_keywords(
        self,
        docs: str,
        *,
        vectorizer: object,
        top_n: int,
        use_mmr: bool,
        diversity: float,
        doc_embeddings: Vector,
        word_embeddings: Vector,
    ) -> list[tuple[str, float]]: ...


@operator
def key_phrases(
    step_id: str,  # noqa: ARG001 - bytewax reads it
    notes: Stream[Note],
    *,
    model: str | None,
    threads: int | None,
    maker: Maker = "phrases",
) -> Stream[Note]:
    """Give every note its concepts: up to ten key phrases out of the `maker`'s candidates, closest to the note first.

    Keeps the order, holds nothing back, and counts every note as enriched. Notes without a vector pass as they are,
    and so do all when `model` is None. `model` is the one that made the vectors; it is loaded when the first vector
    arrives, unless `models.start` has loaded it before; raises ModelError then if it can't be. The vectors of
    phrases that came lately are remembered (`models.remembered`).
    """
    # Workers of one process are threads that share this function, and so what it remembers.
    remembered: list[Remembered] = []

    def describe_batch(batch: list[Note]) -> list[Note]:
        described = unless_reused(batch, describe_fresh)
        NOTES.inc(len(batch))
        return described

    def describe_fresh(fresh: list[Note]) -> list[Note]:
        if model is None or all(note.vector is None for note in fresh):
            return fresh
        embedder = load_embedder(model, threads=threads)
        if maker != "phrases":
            # Thousands of candidates a note, most of them arbitrary cuts, which few other notes share.
            return describe(fresh, embedder, maker=maker)
        if not remembered:
            remembered.append(Remembered(embedder))
        return describe(fresh, remembered[0], maker=maker)

    return op.flat_map_batch("rank", notes, describe_batch)


def describe(notes: Sequence[Note], embedder: Encoder, *, maker: Maker = "phrases") -> list[Note]:
    """Return `notes` with `concepts`; scores are cosine similarities to the note's vector, rounded to 4 digits.

    The candidates of all notes are embedded together, each once, by the model of the notes' vectors; KeyBERT ranks
    them per note by maximal marginal relevance (diversity 0.5), against the vector of the whole document. With the
    maker `keybert` the result is that of KeyBERT's own call on the same vector.
    """
    proposed = [[] if note.vector is None else candidates(note.document.text, maker=maker) for note in notes]
    distinct = sorted({candidate for own in proposed for candidate in own})
    row_of = {candidate: row for row, candidate in enumerate(distinct)}
    rows = embedder.encode(distinct)
    return [
        note
        if note.vector is None or not own
        else replace(note, concepts=_rank(own, rows[[row_of[candidate] for candidate in own]], note.vector))
        for note, own in zip(notes, proposed, strict=True)
    ]


def candidates(text: str, *, maker: Maker) -> list[str]:
    """Return what could be concepts of `text`, each once, in the order that decides between equals."""
    if maker == "keybert":
        return ngrams.candidates(text)
    return phrases.candidates(text, limit=CANDIDATES)


def _rank(proposed: list[str], rows: Vector, vector: Vector) -> tuple[Concept, ...]:
    from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]

    # KeyBERT finds candidates in a document through a vectoriser, whose own idea of a word would lose some. Ours
    # reads the candidates as a document of one phrase per line: all are found, in the order of their rows. They
    # are in lower case, but for capitals that have none (mathematical ones); scikit-learn would warn of those.
    ranked = _ranker().extract_keywords(
        "\n".join(proposed),
        vectorizer=CountVectorizer(vocabulary=proposed, analyzer=str.splitlines, lowercase=False),
        top_n=CONCEPTS,
        use_mmr=True,
        diversity=DIVERSITY,
        doc_embeddings=vector[np.newaxis, :],
        word_embeddings=rows,
    )
    return tuple(Concept(phrase, score) for phrase, score in ranked)


@lru_cache(maxsize=1)
def _ranker() -> _Ranker:
    # Here, not at the top: the import takes seconds, and building a flow must not pay for it.
    from keybert import KeyBERT  # type: ignore[import-untyped]
    from keybert.backend import BaseEmbedder  # type: ignore[import-untyped]

    # All vectors are handed in, so KeyBERT needs no model of its own.
    ranker: _Ranker = KeyBERT(BaseEmbedder())
    return ranker
