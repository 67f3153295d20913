"""How the results of enrichment are kept beside a note, and read back without trust in what is stored.

"pkm results 1\\n"   what this is
32 bytes            SHA-256 of all that follows
8 bytes             length of the header, big-endian
header              JSON: key, dimension, chunks, entities, concepts; places in the text instead of the text itself
rows                float32, little-endian: a vector for each of the first chunks
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import orjson

from core.records import Chunk, Concept, Entity, Note, Vector

__all__ = ["MAX_BYTES", "Results", "decode", "encode"]

MAX_BYTES = 8 * 1024 * 1024
"""Results of a larger note are not kept: a batch of them must not fill the store's memory."""

_MAGIC = b"pkm results 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 8
_ROW_TYPE = np.dtype("<f4")
_LONGEST_ROW = 1.01
_KINDS = frozenset({"PER", "ORG", "LOC", "MISC"})


@dataclass(frozen=True, slots=True)
class Results:
    """What enrichment makes of a text, but for the mean vector; `embeddings` is None without an embedding model."""

    chunks: tuple[Chunk, ...]
    embeddings: Vector | None
    entities: tuple[Entity, ...]
    concepts: tuple[Concept, ...]


def encode(note: Note) -> bytes | None:
    """Write the results of a note under its `result_key`; None when they are too large to be kept."""
    rows = b"" if note.embeddings is None else note.embeddings.astype(_ROW_TYPE, copy=False).tobytes()
    if len(rows) > MAX_BYTES:
        return None
    header = orjson.dumps(
        {
            "key": note.result_key,
            "dimension": 0 if note.embeddings is None else note.embeddings.shape[1],
            "chunks": [[chunk.start, chunk.end] for chunk in note.chunks],
            "entities": [[entity.type, entity.start, entity.end, entity.score] for entity in note.entities],
            "concepts": [[concept.text, concept.score] for concept in note.concepts],
        }
    )
    body = len(header).to_bytes(_LENGTH_BYTES, "big") + header + rows
    return None if len(body) > MAX_BYTES else _MAGIC + hashlib.sha256(body).digest() + body


def decode(stored: bytes, *, key: str, text: str) -> Results | None:
    """Read what `encode` wrote for `key` and `text`; None for anything else: damaged, foreign or of another text."""
    start = len(_MAGIC) + _DIGEST_BYTES
    body = stored[start:]
    if not stored.startswith(_MAGIC) or hashlib.sha256(body).digest() != stored[len(_MAGIC) : start]:
        return None
    # The digest tells of damage only: whoever can write to the store can make one.
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    try:
        header = orjson.loads(body[_LENGTH_BYTES:end])
        return _read(header, body[end:], text) if header["key"] == key else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(header: dict[str, Any], rows: bytes, text: str) -> Results:
    chunks = tuple(
        Chunk(index, text[start:end], start, end)
        for index, (start, end) in enumerate(_places(header["chunks"], text))
    )
    found = header["entities"]
    places = _places([entity[1:3] for entity in found], text)
    entities = tuple(
        Entity(text[start:end], _one_of(_KINDS, kind), _number(score), start, end)
        for (kind, _, _, score), (start, end) in zip(found, places, strict=True)
    )
    concepts = tuple(Concept(_text(concept), _number(score)) for concept, score in header["concepts"])
    return Results(chunks, _rows(rows, header["dimension"], len(chunks)), entities, concepts)


def _places(places: Sequence[Sequence[int]], text: str) -> list[tuple[int, int]]:
    # Within the text, none empty, none overlapping: what every reader relies on.
    found = [(start, end) for start, end in places]
    if not all(type(start) is int and type(end) is int and 0 <= start < end <= len(text) for start, end in found):
        raise ValueError("a place outside of the text")
    if any(one[1] > other[0] for one, other in pairwise(found)):
        raise ValueError("places overlap")
    return found


def _rows(data: bytes, dimension: int, chunks: int) -> Vector | None:
    if dimension == 0 and not data:
        return None
    rows = np.frombuffer(data, _ROW_TYPE).reshape(-1, dimension)
    # A NaN compares false, so it is caught here too.
    if len(rows) > chunks or not (np.linalg.norm(rows, axis=1) < _LONGEST_ROW).all():
        raise ValueError("rows that are no vectors of chunks")
    # A copy, or the rows could not be written to and would keep the whole entry alive.
    return rows.astype(np.float32)


def _number(value: object) -> float:
    if not isinstance(value, float):
        raise TypeError("no score")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _one_of(known: frozenset[str], value: object) -> str:
    if value not in known:
        raise ValueError("an unknown type of entity")
    return str(value)
