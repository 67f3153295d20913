"""Embeds the chunks of notes: one vector per chunk, and their mean for the whole note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import bytewax.operators as op
import numpy as np
import structlog
from bytewax.dataflow import Stream, operator

from core.records import Note, Vector
from models.embedder import Embedder, load_embedder
from operators.fresh import unless_reused
from operators.reading import read_chunks

__all__ = ["embed", "embeddings", "mean"]

_log = structlog.get_logger(module=__name__)


@operator
def embeddings(
    step_id: str,  # noqa: ARG001 - bytewax reads it
    notes: Stream[Note],
    *,
    model: str | None,
    threads: int | None,
    most_characters: int | None = None,
) -> Stream[Note]:
    """Give every note the vectors of its chunks, computed over all chunks of a batch together.

    Of a note longer than `most_characters` only the chunks up to there are embedded, and a warning is logged.

    Keeps the order, holds nothing back. Notes without chunks pass as they are, and so do all when `model` is None.
    A model that `models.start` has not loaded before is loaded when the first chunk arrives; raises ModelError then
    if it can't be.
    """

    def embed_batch(batch: list[Note]) -> list[Note]:
        return unless_reused(batch, embed_fresh)

    def embed_fresh(fresh: list[Note]) -> list[Note]:
        if model is None or not any(note.chunks for note in fresh):
            return fresh
        return embed(fresh, load_embedder(model, threads=threads), most_characters=most_characters)

    return op.flat_map_batch("embed", notes, embed_batch)


def embed(notes: Sequence[Note], embedder: Embedder, *, most_characters: int | None = None) -> list[Note]:
    """Return `notes` with `embeddings` (chunks that are read x dimension) and `vector`, rows L2-normalised.

    A vector depends on its own chunk alone, not on what else is in the batch (cosine within 1e-5).
    """
    read = [note.chunks[: read_chunks(note.document.text, note.chunks, most_characters)] for note in notes]
    rows = embedder.encode([chunk.text for own in read for chunk in own])
    embedded: list[Note] = []
    start = 0
    for note, chunks in zip(notes, read, strict=True):
        end = start + len(chunks)
        # A copy, or one small note would keep the whole batch's rows alive.
        own = rows[start:end].copy()
        embedded.append(replace(note, embeddings=own, vector=mean(own)) if chunks else note)
        start = end
        if len(chunks) < len(note.chunks):
            _log.warning(
                "a note is longer than what models read of it; see PKM_ENRICH_CHARACTERS",
                note_id=note.event.note_id,
                chunks=len(note.chunks),
                embedded=len(chunks),
            )
    return embedded


def mean(rows: Vector) -> Vector:
    """Return the L2-normalised mean of `rows` (n x dimension); zero when they cancel out."""
    found: Vector = rows.mean(axis=0, dtype=np.float32)
    length = float(np.linalg.norm(found))
    # Opposite vectors can cancel out: the zero vector is then the honest mean, and division would give NaN.
    return found / np.float32(length) if length > 0 else found
