"""Remembers the vectors of short texts that come again and again, so that each costs one forward pass.

Notes of one project share most of their phrases. A batch embeds each phrase once, but batches are as small as an
epoch wants them: without a memory, half of the phrases would be embedded in one batch after the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from core.records import Vector

__all__ = ["Encoder", "Remembered"]

# With 384 dimensions 30 MB of vectors, with 768 60 MB, and about 6 MB of phrases; some 400 notes' worth.
MOST_TEXTS = 20_000


class Encoder(Protocol):
    """What turns texts into vectors: `models.embedder.Embedder`, or what remembers its vectors."""

    def encode(self, texts: Sequence[str]) -> Vector:
        """Return one row per text, in their order (n x dimension)."""


class Remembered:
    """An encoder that asks another one only for texts that it has not seen lately; safe to share between threads.

    A row is the one that the text had when it was asked for first, so it may differ by the embedder's own tolerance
    from what it would be in another batch.
    """

    def __init__(self, encoder: Encoder, *, most_texts: int = MOST_TEXTS) -> None:
        """Keep the rows of the `most_texts` texts that were asked for last."""
        self._encoder = encoder
        self._most_texts = most_texts
        self._changing = threading.Lock()
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._rows: Vector | None = None

    def encode(self, texts: Sequence[str]) -> Vector:
        """Return one row per text, in their order (n x dimension); the caller may change them."""
        with self._changing:
            slots = {index: self._slots[text] for index, text in enumerate(texts) if text in self._slots}
            # A copy: the slots may be given to other texts as soon as the lock is released.
            kept = None if self._rows is None else self._rows[list(slots.values())]
        missing = [index for index in range(len(texts)) if index not in slots]
        # Not under the lock, since it takes seconds. Two threads may compute the same row; either will do.
        fresh = self._encoder.encode([texts[index] for index in missing])
        rows = np.empty((len(texts), fresh.shape[1]), dtype=np.float32)
        rows[missing] = fresh
        if kept is not None:
            rows[list(slots)] = kept
        self._remember(texts, rows)
        return rows

    def _remember(self, texts: Sequence[str], rows: Vector) -> None:
        with self._changing:
            if self._rows is None:
                self._rows = np.empty((self._most_texts, rows.shape[1]), dtype=np.float32)
            for text, row in zip(texts, rows, strict=True):
                slot = self._slots.pop(text, None)
                if slot is None:
                    full = len(self._slots) == self._most_texts
                    slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
                    self._rows[slot] = row
                self._slots[text] = slot
