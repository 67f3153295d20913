"""Names the concepts of notes: the key phrases that KeyBERT ranks closest to the whole document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Stream, operator

from core.records import Concept, Note, Vector
from core.telemetry import NOTES
from models.embedder import Embedder, load_embedder
from operators.phrases import candidates

__all__ = ["describe", "key_phrases"]

# Encoding candidates is nearly all of the cost, so their number bounds it. Read side by side on READMEs, the concepts
# out of the 100 best candidates are better than those out of 200 or of all: fewer arbitrary cuts of a sentence.
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
) -> Stream[Note]:
    """Give every note its concepts: up to ten key phrases, closest to the document first.

    Keeps the order, holds nothing back, and counts every note as enriched. Notes without a vector pass as they are,
    and so do all when `model` is None. `model` is the one that made the vectors; it is loaded when the first vector
    arrives; raises ModelError then if it can't be.
    """

    def describe_batch(batch: list[Note]) -> list[Note]:
        described = batch
        if model is not None and any(note.vector is not None for note in batch):
            described = describe(batch, load_embedder(model, threads=threads))
        NOTES.inc(len(batch))
        return described

    return op.flat_map_batch("rank", notes, describe_batch)


def describe(notes: Sequence[Note], embedder: Embedder) -> list[Note]:
    """Return `notes` with `concepts`; scores are cosine similarities to the note's vector, rounded to 4 digits.

    The candidates of all notes are embedded together, each once; KeyBERT ranks them per note by maximal marginal
    relevance (diversity 0.5), against the vector of the whole document.
    """
    phrases = [[] if note.vector is None else candidates(note.document.text, limit=CANDIDATES) for note in notes]
    distinct = sorted({phrase for own in phrases for phrase in own})
    row_of = {phrase: row for row, phrase in enumerate(distinct)}
    rows = embedder.encode(distinct)
    return [
        note
        if note.vector is None or not own
        else replace(note, concepts=_rank(own, rows[[row_of[phrase] for phrase in own]], note.vector))
        for note, own in zip(notes, phrases, strict=True)
    ]


def _rank(phrases: list[str], rows: Vector, vector: Vector) -> tuple[Concept, ...]:
    from sklearn.feature_extraction.text import CountVectorizer  # type: ignore[import-untyped]

    # KeyBERT finds candidates in a document through a vectoriser, whose own idea of a word would lose some. Ours
    # reads the candidates as a document of one phrase per line: all are found, in the order of their rows.
    ranked = _ranker().extract_keywords(
        "\n".join(phrases),
        vectorizer=CountVectorizer(vocabulary=phrases, analyzer=str.splitlines),
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
