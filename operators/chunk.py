"""Splits a document into chunks that fit the embedding model, so that no text is silently cut off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import bytewax.operators as op
import numpy as np
import numpy.typing as npt
from bytewax.dataflow import Stream, operator
from tokenizers import Tokenizer

from core.records import Chunk, Document, Note
from models.embedder import load_embedder, well_formed
from operators.fresh import unless_reused
from operators.reuse import Reuse

__all__ = ["chunks", "split"]

# A chunk has no more characters than this per token it may hold, so that a run without tokens (spaces, controls, a
# word that is one unknown token) can't make a row of megabytes. Prose has four to five characters per token.
CHARACTERS_PER_TOKEN = 16
# Text is tokenised this many characters at a time: a token costs some hundred bytes, a document may have millions.
TOKENISED_CHARACTERS = 262_144
TOKENISED_CHUNKS = 1_024

# From the best place to break to the worst; each match ends where the next chunk may begin.
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(r"\n\s*|[.!?…][\"'\u201d\u2019)\]]*\s+|[。\uff01\uff1f]\s*")
_SPACE = re.compile(r"\s+")
_BREAKS = (_PARAGRAPH, _SENTENCE, _SPACE)

_Offsets = npt.NDArray[np.int64]


@operator
def chunks(
    step_id: str,  # noqa: ARG001 - bytewax reads it
    documents: Stream[Document],
    *,
    embedding_model: str | None,
    threads: int | None,
    processing_version: str,
    reuse: Reuse | None = None,
) -> Stream[Note]:
    """Make a note of every document, with the chunks that `embedding_model` will embed; none of an outdated one.

    With `reuse` a note whose text was enriched before leaves with all its results, and no later step computes them.

    Keeps the order, holds nothing back. `processed_at` is the time of this step. Without a model, or without text, a
    note has no chunks. A model that `models.start` has not loaded before is loaded when the first text arrives; then
    raises ModelError if it can't be.
    """

    def split_batch(batch: list[Document]) -> list[Note]:
        now = datetime.now(UTC)
        notes = [
            Note(document, processing_version, processed_at=now) for document in batch if not document.event.outdated
        ]
        return unless_reused(
            reuse.fill(notes) if reuse else notes, lambda fresh: [_with_chunks(note) for note in fresh]
        )

    def _with_chunks(note: Note) -> Note:
        text = note.document.text
        if embedding_model is None or not text.strip():
            return note
        embedder = load_embedder(embedding_model, threads=threads)
        return replace(note, chunks=split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens))

    return op.flat_map_batch("split", documents, split_batch)


def split(text: str, *, tokenizer: Tokenizer, max_tokens: int) -> tuple[Chunk, ...]:
    """Cut `text` into chunks of at most `max_tokens` tokens of `tokenizer`, special tokens not counted.

    Every character that is not white space lies in exactly one chunk. A chunk ends, where it can without being less
    than half full, at the end of a paragraph, else of a sentence or line, else of a word; only a word that is longer
    than a chunk is cut. Only a single character that makes more than `max_tokens` tokens is let through. Takes time
    linear in the text. `tokenizer` must not truncate.

    Raises ValueError when `max_tokens` is not positive.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} leaves no room for text")
    sound = well_formed(text)
    planned = list(_plan(sound, _token_starts(sound, tokenizer), max_tokens))
    fitting = _fit(sound, planned, tokenizer, max_tokens)
    return tuple(Chunk(index, text[start:end], start, end) for index, (start, end) in enumerate(fitting))


def _token_starts(text: str, tokenizer: Tokenizer) -> _Offsets:
    # Where each token of `text` begins, ascending.
    parts = [np.empty(0, dtype=np.int64)]
    start = 0
    while start < len(text):
        end = min(start + TOKENISED_CHARACTERS, len(text))
        if end < len(text):
            end = _break_before(text, start + (end - start) // 2, end) or end
        encoding = tokenizer.encode(text[start:end], add_special_tokens=False)
        parts.append(np.fromiter((first for first, _ in encoding.offsets), np.int64, len(encoding.ids)) + start)
        start = end
    # Some normalisers reorder within a character: a running maximum keeps the starts ascending.
    return np.maximum.accumulate(np.concatenate(parts))


def _plan(text: str, token_starts: _Offsets, max_tokens: int) -> Iterator[tuple[int, int]]:
    # Ranges of chunks by the tokens of the whole text; a cut inside a word may yet change how its rest is tokenised.
    start = _skip_space(text, 0)
    while start < len(text):
        after = int(np.searchsorted(token_starts, start)) + max_tokens
        limit = int(token_starts[after]) if after < len(token_starts) else len(text)
        limit = min(max(limit, start + 1), start + max_tokens * CHARACTERS_PER_TOKEN)
        cut = limit
        if limit < len(text):
            cut = _break_before(text, start + 1, limit, half=start + (limit - start) // 2) or limit
        yield start, start + len(text[start:cut].rstrip())
        start = _skip_space(text, cut)


def _fit(
    text: str, planned: list[tuple[int, int]], tokenizer: Tokenizer, max_tokens: int
) -> Iterator[tuple[int, int]]:
    # Halve every range that has too many tokens when it is tokenised by itself, as the model will.
    for first in range(0, len(planned), TOKENISED_CHUNKS):
        ranges = planned[first : first + TOKENISED_CHUNKS]
        while True:
            encodings = tokenizer.encode_batch([text[start:end] for start, end in ranges], add_special_tokens=False)
            halved: list[tuple[int, int]] = []
            for (start, end), encoding in zip(ranges, encodings, strict=True):
                if len(encoding.ids) <= max_tokens or end - start == 1:
                    halved.append((start, end))
                    continue
                half = start + (end - start) // 2
                cut = _break_before(text, start + 1, half) or half
                halved.append((start, start + len(text[start:cut].rstrip())))
                halved.append((_skip_space(text, cut), end))
            if len(halved) == len(ranges):
                break
            ranges = halved
        yield from ranges


def _break_before(text: str, least: int, limit: int, *, half: int | None = None) -> int | None:
    # The last good place to begin a new chunk at, between `least` and `limit`; a word's end will do before `half`.
    for pattern in _BREAKS:
        earliest = least if pattern is _SPACE or half is None else max(least, half)
        place = None
        for match in pattern.finditer(text, max(earliest - 1, 0), limit):
            if match.end() >= earliest:
                place = match.end()
        if place is not None:
            return place
    return None


def _skip_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return space.end() if space else start
