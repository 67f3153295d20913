"""Identities are the same everywhere and differ where they must; records can't be changed."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import records
from core.records import Position, WindowAggregate, event_identity, note_identity


def test_identities_are_the_documented_ones_because_tables_hold_them() -> None:
    assert note_identity("git", "docs/readme.md") == "a6ef8ef7ebe7c03704e1b614b37d57f4"
    assert event_identity("git", "docs/readme.md", b"# Read me\n") == "d895d751eb8e95bd7c83af1290e434cb"


@given(st.text(), st.text(), st.text(), st.text())
def test_two_notes_never_share_an_identity(type_1: str, name_1: str, type_2: str, name_2: str) -> None:
    same = (type_1, name_1) == (type_2, name_2)
    assert (note_identity(type_1, name_1) == note_identity(type_2, name_2)) is same


def test_where_the_parts_are_cut_matters() -> None:
    assert note_identity("ab", "c") != note_identity("a", "bc")


@given(st.binary(), st.binary())
def test_versions_of_a_note_differ_by_content_and_by_nothing_else(one: bytes, other: bytes) -> None:
    assert (event_identity("git", "a", one) == event_identity("git", "a", other)) is (one == other)
    assert event_identity("git", "a", one) != event_identity("git", "b", one)


def test_positions_are_ordered_by_number_not_by_text() -> None:
    assert Position("a", 9) < Position("a", 10) < Position("a", 10, 1)


@pytest.mark.parametrize(("documents", "words", "mean"), [(0, 0, 0.0), (4, 10, 2.5)])
def test_a_window_without_documents_has_a_mean_of_zero(documents: int, words: int, mean: float) -> None:
    start = datetime(2026, 11, 23, tzinfo=UTC)
    window = WindowAggregate(start, start + timedelta(minutes=5), "git", 5, documents, words, ())
    assert window.avg_words == mean


def test_every_record_is_frozen_and_slotted() -> None:
    classes = [value for name in records.__all__ if dataclasses.is_dataclass(value := getattr(records, name))]
    assert len(classes) >= 12
    for record in classes:
        assert record.__dataclass_params__.frozen, record
        assert "__slots__" in vars(record), record
