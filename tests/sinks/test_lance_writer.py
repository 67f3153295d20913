"""Who may write to the vector store: the last to claim it, whatever an older execution did when it fell asleep."""

from __future__ import annotations

from typing import Any

import lance as library
import pytest

from core.errors import FencedError
from core.markers import Marker
from core.recovery import ownership
from core.settings import Settings
from sinks import lance
from vectors import note, one_epoch, stored_objects, texts


def test_a_second_opener_fences_the_first_for_good(store: Settings) -> None:
    first = lance.VectorPart(store)
    one_epoch(first, [note("n1", 1, "a")])
    second = lance.VectorPart(store)
    for _ in range(2):
        with pytest.raises(FencedError, match="newer execution"):
            one_epoch(first, [note("n1", 2, "first")])
    one_epoch(second, [note("n1", 2, "second")])
    assert texts(store) == {"n1#0": "second"}


def test_an_opener_stops_a_merge_that_has_already_looked_who_the_writer_is(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lance.VectorPart(store)
    one_epoch(first, [note("n0", 1, "before")])
    merge_insert = library.LanceDataset.merge_insert

    def paused(self: library.LanceDataset, key: str) -> Any:
        monkeypatch.setattr(library.LanceDataset, "merge_insert", merge_insert)
        second = lance.VectorPart(store)
        one_epoch(second, [note("n1", 2, "written"), note("n1", 3, "", deleted=True)])
        return merge_insert(self, key)

    monkeypatch.setattr(library.LanceDataset, "merge_insert", paused)
    with pytest.raises(FencedError, match="newer execution"):
        one_epoch(first, [note("n1", 2, "written")])
    assert texts(store) == {"n0#0": "before"}


def test_an_opener_that_was_overtaken_while_it_slept_takes_nothing_back(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = library.LanceDataset.commit

    def sleepy(*args: Any, **options: Any) -> library.LanceDataset:
        monkeypatch.setattr(library.LanceDataset, "commit", staticmethod(commit))
        one_epoch(lance.VectorPart(store), [note("n1", 1, "of the other")])
        return commit(*args, **options)

    monkeypatch.setattr(library.LanceDataset, "commit", staticmethod(sleepy))
    first = lance.VectorPart(store)
    assert texts(store) == {"n1#0": "of the other"}
    one_epoch(first, [note("n1", 2, "of the last to open")])
    assert texts(store) == {"n1#0": "of the last to open"}


def test_an_opener_that_is_replaced_between_its_question_and_its_claim_takes_nothing(store: Settings) -> None:
    newer: list[lance.VectorPart] = []

    def replaced() -> None:
        if newer:
            raise FencedError("a newer execution claimed the flow")
        ownership.release(replaced)
        newer.append(lance.VectorPart(store))
        one_epoch(newer[0], [note("n1", 1, "of the newer")])
        ownership.hold(replaced)

    ownership.hold(replaced)
    try:
        with pytest.raises(FencedError, match="newer execution claimed"):
            lance.VectorPart(store)
    finally:
        ownership.release(replaced)
    one_epoch(newer[0], [note("n1", 2, "still the writer")])
    assert texts(store) == {"n1#0": "still the writer"}


def test_a_writer_that_was_replaced_between_merge_and_marker_leaves_the_marker_alone(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lance.VectorPart(store)
    newer: list[lance.VectorPart] = []
    update = library.LanceDataset.update_metadata

    def sleepy(self: library.LanceDataset, values: dict[str, str | None]) -> dict[str, str]:
        monkeypatch.setattr(library.LanceDataset, "update_metadata", update)
        newer.append(lance.VectorPart(store))
        return update(self, values)

    monkeypatch.setattr(library.LanceDataset, "update_metadata", sleepy)
    with pytest.raises(FencedError, match="newer execution"):
        one_epoch(first, [note("n1", 1, "merged")])
    assert lance.VectorPart(store).marker == newer[0].marker == Marker()
    assert len(stored_objects(store)) == 1, "what the snapshot names is still there"
