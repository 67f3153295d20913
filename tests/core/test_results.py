"""Results that are kept come back as they were; whatever else is stored there counts as nothing."""

from __future__ import annotations

import hashlib

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import note_of
from core import results
from core.records import Chunk, Concept, Entity, Note

TEXT = "Ada met Tom in Paris, where it rained."
KEY = "0" * 64


def note(**changes: object) -> Note:
    fields: dict[str, object] = {
        "chunks": (Chunk(0, TEXT[:21], 0, 21), Chunk(1, TEXT[22:], 22, len(TEXT))),
        "embeddings": np.array([[0.6, 0.8]], dtype=np.float32),
        "entities": (Entity("Ada", "PER", 0.1 + 0.2, 0, 3), Entity("Paris", "LOC", 1.0, 15, 20)),
        "concepts": (Concept("rain", 0.4321),),
        "result_key": KEY,
    }
    return note_of(TEXT, **{**fields, **changes})


def stored(made: Note) -> bytes:
    encoded = results.encode(made)
    assert encoded is not None
    return encoded


def forged(**changes: object) -> bytes:
    """An entry that somebody wrote who knows the format."""
    header = {
        "key": KEY,
        "dimension": 2,
        "chunks": [[0, 21], [22, 38]],
        "entities": [["PER", 0, 3, 0.5]],
        "concepts": [["rain", 0.5]],
    }
    rows = changes.pop("rows", np.array([[0.6, 0.8]], dtype="<f4").tobytes())
    written = orjson.dumps({**header, **changes})
    assert isinstance(rows, bytes)
    body = len(written).to_bytes(8, "big") + written + rows
    return b"pkm results 1\n" + hashlib.sha256(body).digest() + body


def test_results_come_back_bit_for_bit() -> None:
    found = results.decode(stored(note()), key=KEY, text=TEXT)
    assert found is not None
    assert (found.chunks, found.entities, found.concepts) == (note().chunks, note().entities, note().concepts)
    assert found.embeddings is not None
    np.testing.assert_array_equal(found.embeddings, note().embeddings)
    assert found.embeddings.flags.writeable


def test_a_note_without_vectors_has_none_afterwards() -> None:
    found = results.decode(stored(note(embeddings=None, chunks=())), key=KEY, text=TEXT)
    assert found is not None
    assert found.embeddings is None


def test_of_the_text_only_places_are_stored() -> None:
    assert b"Ada" not in stored(note())


def test_results_of_another_key_or_of_a_shorter_text_are_nothing() -> None:
    assert results.decode(stored(note()), key="1" * 64, text=TEXT) is None
    assert results.decode(stored(note()), key=KEY, text=TEXT[:10]) is None


@given(st.integers(0, len(stored(note())) - 1), st.integers(1, 255))
def test_any_changed_byte_makes_it_nothing(place: int, change: int) -> None:
    damaged = bytearray(stored(note()))
    damaged[place] ^= change
    assert results.decode(bytes(damaged), key=KEY, text=TEXT) is None
    assert results.decode(bytes(damaged[:place]), key=KEY, text=TEXT) is None


@given(st.binary(max_size=200))
def test_foreign_bytes_are_nothing(data: bytes) -> None:
    assert results.decode(data, key=KEY, text=TEXT) is None
    body = b"pkm results 1\n" + hashlib.sha256(data).digest() + data
    assert results.decode(body, key=KEY, text=TEXT) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": [[0, 99]]},
        {"chunks": [[5, 5], [6, 7]]},
        {"chunks": [[0, 10], [9, 20]]},
        {"chunks": [[0.0, 10]]},
        {"chunks": []},
        {"entities": [["GOD", 0, 3, 0.5]]},
        {"entities": [["PER", -1, 3, 0.5]]},
        {"entities": [["PER", 0, 3, "much"]]},
        {"entities": 7},
        {"concepts": [[7, 0.5]]},
        {"concepts": [["rain", None]]},
        {"dimension": 3},
        {"dimension": -1},
        {"dimension": "2"},
        {"rows": np.array([[3.0, 4.0]], dtype="<f4").tobytes()},
        {"rows": np.array([[np.nan, 0.0]], dtype="<f4").tobytes()},
        {"rows": np.zeros((3, 2), dtype="<f4").tobytes()},
    ],
)
def test_an_entry_that_can_not_be_true_is_nothing(changes: dict[str, object]) -> None:
    assert results.decode(forged(), key=KEY, text=TEXT) is not None
    assert results.decode(forged(**changes), key=KEY, text=TEXT) is None


def test_results_that_are_too_large_are_not_kept() -> None:
    rows = np.zeros((results.MAX_BYTES // 8, 2), dtype=np.float32)
    assert results.encode(note(embeddings=rows)) is None
