"""Text that others wrote commands no terminal, and loses nothing that a reader needs."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.visible import visible, visible_json


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2Jwiped", "\\x1b[2Jwiped"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31mred", "\\x9b31mred"),
        ("gnp\u202eexe", "gnp\\u202eexe"),
        ("half \ud800", "half \\ud800"),
        ("over\rwritten", "over\\rwritten"),
        ("two\nlines", "two\\nlines"),
        ("Zoë 日本 🙂", "Zoë 日本 🙂"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


def test_lines_are_kept_when_asked_for() -> None:
    assert visible("a\n\tb\x1b", keep_lines=True) == "a\n\tb\\x1b"


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    assert not {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(character) for character in visible(text)}


@given(st.dictionaries(st.text(), st.text()))
def test_json_keeps_its_value(value: dict[str, str]) -> None:
    written = visible_json(json.dumps(value, ensure_ascii=False, indent=2))

    assert json.loads(written) == value
    assert not {"Cs", "Zl", "Zp"} & {unicodedata.category(character) for character in written}
    assert "\x9b" not in written
