"""Keys of the metadata store: escaping, order, bounds."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sinks import metadata_keys

# Half surrogate pairs included: hostile JSON has them.
TEXT = st.text(st.characters(exclude_categories=()))
ENCODABLE = st.text(st.characters(exclude_categories=("Cs",)))


@given(ENCODABLE)
def test_an_escaped_text_comes_back_whole(text: str) -> None:
    assert metadata_keys.unescape(metadata_keys.escape(text)) == text


@given(TEXT)
def test_no_separator_and_no_control_character_comes_out_of_data(text: str) -> None:
    key = metadata_keys.build_key("entity", "PER", text, "note").decode()
    assert key.count("/") == 3
    assert key.isprintable() or not any(ord(character) < 0x20 or 0x7F <= ord(character) <= 0x9F for character in key)


@given(st.lists(ENCODABLE.filter(lambda text: len(text.encode()) <= metadata_keys.MAX_TEXT_BYTES), min_size=1))
def test_a_key_splits_into_the_parts_it_was_built_from(parts: list[str]) -> None:
    assert metadata_keys.split_key(metadata_keys.build_key(*parts)) == tuple(parts)


@given(ENCODABLE, ENCODABLE, ENCODABLE)
def test_a_prefix_matches_whole_parts_only(one: str, other: str, note_id: str) -> None:
    key = metadata_keys.build_key("concept", other, note_id)
    assert key.startswith(metadata_keys.prefix_of("concept", one)) == (one == other)


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_times_sort_as_text(one: datetime, other: datetime) -> None:
    written = metadata_keys.time_part(one), metadata_keys.time_part(other)
    assert {len(text) for text in written} == {27}
    assert (written[0] < written[1]) == (one < other)
    assert datetime.fromisoformat(written[0]) == one


@given(TEXT)
def test_a_part_of_a_key_is_bounded(text: str) -> None:
    assert len(metadata_keys.bounded(text * 300).encode()) <= metadata_keys.MAX_TEXT_BYTES


def test_long_texts_with_the_same_beginning_have_different_keys() -> None:
    long = "word " * 1000
    assert metadata_keys.concept_key(long + "one", "n") != metadata_keys.concept_key(long + "two", "n")


@given(TEXT)
def test_folding_a_folded_text_changes_nothing(text: str) -> None:
    assert metadata_keys.fold(metadata_keys.fold(text)) == metadata_keys.fold(text)


def test_case_width_and_spaces_do_not_matter_for_look_up() -> None:
    assert metadata_keys.fold("  STRASSE\n7 ") == metadata_keys.fold("Straße 7") == "strasse 7"
    assert metadata_keys.fold("\uff21\uff44\uff41") == "ada"


@given(TEXT, st.integers(1, 256))
def test_every_note_has_one_of_the_parts(note_id: str, parts: int) -> None:
    names = metadata_keys.part_names(parts)
    assert names == sorted(names)
    assert metadata_keys.part_hash(note_id) == metadata_keys.part_hash(str(note_id))
    assert names[metadata_keys.part_hash(note_id) % parts].startswith("part-")


def test_the_hash_of_a_note_never_changes() -> None:
    # Notes written by an earlier release must be found by every later one.
    assert metadata_keys.part_hash("0123456789abcdef0123456789abcdef") == 14747790027161375571


def test_part_names_are_those_of_the_documents() -> None:
    assert metadata_keys.part_names(4) == ["part-00", "part-01", "part-02", "part-03"]
    assert metadata_keys.part_names(101)[100] == "part-100"
