"""Metadata fits where it goes, and is nowhere lost without being kept whole elsewhere."""

from __future__ import annotations

from urllib.parse import unquote

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import NOW, record_of
from core.records import Event
from operators.parse import parse_record
from producers.items import StoredObject
from producers.metadata import ATTRIBUTE_BYTES, as_texts, place
from producers.stream import announcement_of

LONG = st.builds(lambda character, count: character * count, st.sampled_from("x\u00fc\0"), st.integers(0, 1250))
TEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=20) | LONG, max_size=80)


@settings(deadline=None)
@given(TEXTS)
def test_each_place_takes_what_it_is_given(metadata: dict[str, str]) -> None:
    placed = place(metadata, identity="a", own={"note-id": "0" * 32})
    stored = StoredObject(
        source_type="agents", identity="a", event_id="e", s3_key="k", content_size=0, metadata=metadata
    )
    data = announcement_of(stored, placed, bucket="bucket", time=NOW).data
    event = parse_record(record_of(data=data), bucket="bucket", now=NOW)
    assert isinstance(event, Event), event
    assert event.metadata == placed.record
    assert sum(len(name) + len(value) for name, value in placed.attributes.items()) <= ATTRIBUTE_BYTES
    for name, value in placed.attributes.items():
        assert name.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert " " not in name + value
    assert placed.attributes["note-id"] == "0" * 32
    whole = orjson.loads(placed.whole) if placed.whole else placed.record
    assert len(whole) <= len(metadata)
    assert placed.record.items() <= whole.items()


def test_short_metadata_is_only_in_the_record_and_the_attributes() -> None:
    placed = place({"path": "a/b.md", "Title": "Caf\u00e9 au lait"}, identity="a", own={})
    assert placed.record == {"path": "a/b.md", "Title": "Caf\u00e9 au lait"}
    assert placed.attributes == {"path": "a/b.md", "title": "Caf%C3%A9%20au%20lait"}
    assert unquote(placed.attributes["title"]) == "Caf\u00e9 au lait"
    assert (placed.whole, placed.whole_sha256) == (None, None)


def test_the_longest_are_left_out_first_and_the_whole_is_kept() -> None:
    metadata = {"long": "x" * 20_000, "short": "y", "middle": "z" * 3_000}
    placed = place(metadata, identity="a", own={})
    assert set(placed.record) == {"short", "middle"}
    assert set(placed.attributes) == {"short"}
    assert orjson.loads(placed.whole or b"") == metadata


def test_names_that_s3_does_not_take_are_spelt_anew_and_never_ours() -> None:
    placed = place({"Note ID": "forged", "\u00fc": "x", "a_b": "1"}, identity="a", own={"note-id": "real"})
    assert placed.attributes == {"note-id": "real", "a-b": "1"}


def test_more_than_the_limit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r'metadata of "a\.md" has 300,\d+ bytes, 262,144 are taken'):
        place({"all": "x" * 300_000}, identity="a.md", own={})


def test_values_of_any_kind_become_text() -> None:
    assert as_texts({"a": "x", "b": 1, "c": None, "d": ["y"], "e": True}) == {
        "a": "x",
        "b": "1",
        "d": '["y"]',
        "e": "true",
    }
    with pytest.raises(ValueError, match="JSON can't hold"):
        as_texts({"a": {1, 2}})
