"""Entities of notes: what the operator adds, what it leaves as it is, when the model is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

from builders import event_of, note_of
from core.errors import ModelError
from core.records import Entity, Note
from models.tagger import Tagger, load_tagger
from operators import entities


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return load_tagger("embedded", threads=None)


NOTES = [
    note_of("Angela Merkel met Emmanuel Macron in Paris. Paris was cold."),
    note_of(""),
    note_of("We walked home and made dinner."),
    note_of("Maria Silva moved to Lisbon."),
]


def flow_of(notes: list[Note], out: list[Note], *, model: str | None = "embedded", batch_size: int = 10) -> Dataflow:
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(notes, batch_size=batch_size))
    op.output("out", entities.find("entities", stream, model=model, threads=None), TestingSink(out))
    return flow


class Counting:
    """Stands in for a tagger: the whole text is a person, and calls are kept."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def find(self, texts: Sequence[str]) -> list[list[Entity]]:
        self.calls.append(list(texts))
        return [[Entity(text, "PER", 1.0, 0, len(text))] for text in texts]


def test_every_occurrence_is_added_and_the_rest_of_the_note_stays(tagger: Tagger) -> None:
    found = entities.with_entities(tagger, NOTES)
    assert [(entity.text, entity.type) for entity in found[0].entities] == [
        ("Angela Merkel", "PER"),
        ("Emmanuel Macron", "PER"),
        ("Paris", "LOC"),
        ("Paris", "LOC"),
    ]
    for before, after in zip(NOTES, found, strict=True):
        assert after.document is before.document
        for entity in after.entities:
            assert before.document.text[entity.start : entity.end] == entity.text


def test_deleted_and_empty_notes_pass_untouched() -> None:
    counting = Counting()
    deleted, empty = note_of("Anna was here", event=event_of(deleted=True)), note_of("", event=event_of())
    assert [id(one) for one in entities.with_entities(counting, [deleted, empty])] == [id(deleted), id(empty)]  # type: ignore[arg-type]
    assert counting.calls == [[]]


def test_a_micro_batch_is_one_call() -> None:
    counting = Counting()
    notes = [note_of(f"text {number}") for number in range(5)]
    found = entities.with_entities(counting, notes)  # type: ignore[arg-type]
    assert [len(call) for call in counting.calls] == [5]
    assert [one.entities[0].text for one in found] == [one.document.text for one in notes]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_operator_keeps_notes_and_order(workers: int) -> None:
    out: list[Note] = []
    flow = flow_of(NOTES * 2, out, batch_size=3)
    if workers == 1:
        run_main(flow)
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=2)
    assert [one.document.text for one in out] == [one.document.text for one in NOTES * 2]
    assert [len(one.entities) for one in out] == [4, 0, 0, 2] * 2


def test_a_missing_model_stops_the_flow_with_its_name() -> None:
    with pytest.raises(BytewaxRuntimeError) as raised:
        run_main(flow_of(NOTES, [], model="nonesuch/model"))
    cause: BaseException | None = raised.value
    while cause is not None and not isinstance(cause, ModelError):
        cause = cause.__cause__
    assert '"nonesuch/model"' in str(cause)


def test_without_a_model_all_notes_pass_untouched() -> None:
    out: list[Note] = []
    run_main(flow_of(NOTES, out, model=None))
    assert [id(one) for one in out] == [id(one) for one in NOTES]


def test_a_flow_is_built_without_torch_and_without_the_model() -> None:
    code = (
        "import sys\n"
        "import bytewax.operators as op\n"
        "from bytewax.dataflow import Dataflow\n"
        "from bytewax.testing import TestingSource\n"
        "from operators import entities\n"
        "entities.find('entities', op.input('in', Dataflow('test'), TestingSource([])), model='none', threads=None)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
