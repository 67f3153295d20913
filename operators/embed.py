"""Embeds the chunks of notes: one vector per chunk, and their mean for the whole note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import bytewax.operators as op
import numpy as np
import structlog
from bytewax.dataflow import Stream, operator

from core.records import Note, Vector
from models.embedder import Embedder, load_embedder
from operators.fresh import unless_reused
from operators.reading import read_chunks

if TYPE_CHECKING:
    from models.shared_pass import SharedPass

__all__ = ["embed", "embeddings", "mean"]

_log = structlog.get_logger(module=__name__)


@operator
def embeddings(
    step_id: str,  # noqa: ARG001 - bytewax reads it
    notes: Stream[Note],
    *,
    model: str | None,
    threads: int | None,
    entity_model: str | None = None,
    most_characters: int | None = None,
) -> Stream[Note]:
    """Give every note the vectors of its chunks, computed over all chunks of a batch together.

    Where `entity_model` stands on `model`, one pass gives the entities too (`models.shared_pass`).

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
        embedder = load_embedder(model, threads=threads)
        return embed(fresh, embedder, shared=shared_pass(), most_characters=most_characters)

    def shared_pass() -> SharedPass | None:
        if model is None or entity_model is None:
            return None
        # Here, not at the top: importing torch takes seconds, and building a flow must not pay for it.
        from models.shared_pass import load_shared_pass

        return load_shared_pass(model, entity_model, threads=threads)

    return op.flat_map_batch("embed", notes, embed_batch)


def embed(
    notes: Sequence[Note],
    embedder: Embedder,
    *,
    shared: SharedPass | None = None,
    most_characters: int | None = None,
) -> list[Note]:
    """Return `notes` with `embeddings` (chunks that are read x dimension) and `vector`, rows L2-normalised.

    A vector depends on its own chunk alone, not on what else is in the batch (cosine within 1e-5). With `shared` the
    entities of the notes come out of the same pass.
    """
    read = [note.chunks[: read_chunks(note.document.text, note.chunks, most_characters)] for note in notes]
    for note, own in zip(notes, read, strict=True):
        if len(own) < len(note.chunks):
            _log.warning(
                "a note is longer than what models read of it; see PKM_ENRICH_CHARACTERS",
                note_id=note.event.note_id,
                chunks=len(note.chunks),
                embedded=len(own),
            )
    if shared is not None:
        vectors, entities = shared.run([note.document.text for note in notes], read)
        embedded = _with_rows(notes, vectors)
        return [
            replace(note, entities=found, entities_found=True) if note.chunks else note
            for note, found in zip(embedded, entities, strict=True)
        ]
    rows = embedder.encode([chunk.text for own in read for chunk in own])
    ends = np.cumsum([len(own) for own in read])
    # Copies, or one small note would keep the whole batch's rows alive.
    return _with_rows(notes, [own.copy() for own in np.split(rows, ends[:-1])] if notes else [])


def _with_rows(notes: Sequence[Note], vectors: Sequence[Vector]) -> list[Note]:
    return [
        replace(note, embeddings=own, vector=mean(own)) if len(own) else note
        for note, own in zip(notes, vectors, strict=True)
    ]


def mean(rows: Vector) -> Vector:
    """Return the L2-normalised mean of `rows` (n x dimension); zero when they cancel out."""
    found: Vector = rows.mean(axis=0, dtype=np.float32)
    length = float(np.linalg.norm(found))
    # Opposite vectors can cancel out: the zero vector is then the honest mean, and division would give NaN.
    return found / np.float32(length) if length > 0 else found
