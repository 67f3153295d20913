"""Chunks and vectors without a model: one chunk a line, its vector a digest of its text."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import numpy as np

from core.records import Chunk, Document, Note

__all__ = ["DIMENSION", "chunk_texts", "with_chunks"]

DIMENSION = 8


def chunk_texts(text: str) -> list[str]:
    """Return the lines of a text that hold anything."""
    return [line for line in text.splitlines() if line.strip()]


def with_chunks(document: Document, processing_version: str) -> Note:
    """Make the note of a document, as the steps with models would."""
    texts = chunk_texts(document.text)
    chunks = tuple(Chunk(index, text, 0, len(text)) for index, text in enumerate(texts))
    vectors = np.array([_vector(text) for text in texts], np.float32) if texts else None
    return Note(document, processing_version, chunks=chunks, embeddings=vectors, processed_at=datetime.now(UTC))


def _vector(text: str) -> np.ndarray:
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIMENSION], np.uint8).astype(np.float32) + 1.0
    return digest / np.linalg.norm(digest)
