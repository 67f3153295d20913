"""What a person sees is aligned, fits the terminal, and obeys nobody's document."""

from __future__ import annotations

import io
import re
import time
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from rich.console import Console

from pkm import screen
from producers.items import Summary
from sinks.lance import SearchHit

HOSTILE = "[bold red]x[/] \x1b[2J\x1b]0;t\x07 \x9b31m \u202e end\n# next"
SAFE = r"[bold red]x[/] \x1b[2J\x1b]0;t\x07 \x9b31m \u202e end # next"
NOTE_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that calls one of the screen's at a width, and returns what it printed."""

    def call(function: Any, *arguments: Any, width: int = 80, terminal: bool = False, **options: Any) -> str:
        file = io.StringIO()
        console = Console(file=file, width=width, highlight=False, force_terminal=terminal, color_system=None)
        monkeypatch.setattr(screen, "output", console)
        monkeypatch.setattr(screen, "messages", console)
        function(*arguments, **options)
        return file.getvalue()

    return call


def assert_it_fits(text: str, width: int) -> None:
    assert all(len(line) <= width for line in text.splitlines()), text
    assert all(line == line.rstrip() for line in text.splitlines()), text


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (screen.complain, (HOSTILE,)),
        (screen.step, (HOSTILE,)),
        (screen.show_rows, ([{HOSTILE: HOSTILE, "b": [HOSTILE], "c": {HOSTILE: HOSTILE}}],)),
        (screen.show_fields, ({HOSTILE: HOSTILE},)),
        (screen.show_note, ({"title": HOSTILE, "metadata": {"path": HOSTILE}},)),
        (screen.show_hits, ([SearchHit(note_id=HOSTILE, chunk=0, score=1.0, text=HOSTILE, source=HOSTILE)],)),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("width", [40, 200])
def test_no_document_commands_the_terminal(
    shown: Any, function: Any, arguments: tuple[Any, ...], as_json: bool, width: int
) -> None:
    options: dict[str, Any] = {"as_json": as_json}
    if function in (screen.complain, screen.step):
        options = {}
    if function is screen.show_fields:
        options["title"] = HOSTILE

    text = shown(function, *arguments, width=width, **options)

    assert not any(character in text for character in "\x1b\x07\x9b\u202e")
    # Rich's markup is not ours to obey either.
    assert "[boldred]" in "".join(text.split())


def test_hostile_text_can_still_be_read(shown: Any) -> None:
    assert SAFE in shown(screen.show_fields, {"title": HOSTILE}, title="note", as_json=False, width=200)


def test_json_of_hostile_text_has_its_value(shown: Any) -> None:
    text = shown(screen.show_rows, [{HOSTILE: HOSTILE}], as_json=True)

    assert orjson.loads(text) == [{HOSTILE: HOSTILE}]


@pytest.mark.parametrize("width", [50, 80, 120])
def test_rows_fit_the_terminal_and_ids_stay_whole(shown: Any, width: int) -> None:
    rows = [
        {"note_id": NOTE_ID, "title": "word " * 30, "count": number, "at": datetime(2026, 11, 23, tzinfo=UTC)}
        for number in (1, 22)
    ]

    text = shown(screen.show_rows, rows, as_json=False, width=width)

    assert_it_fits(text, width)
    assert text.count(NOTE_ID) == 2
    assert text.count("2026-11-23 00:00:00") == 2


def test_a_row_of_many_columns_is_shown_as_a_record(shown: Any) -> None:
    row = {f"column_{number}": "x" * 1_000_000 for number in range(20)}

    text = shown(screen.show_rows, [row, row], as_json=False)

    assert_it_fits(text, 80)
    assert [line for line in text.splitlines() if line.startswith("row")] == ["row 1", "row 2"]
    assert len(text) < 20_000


@pytest.mark.parametrize("width", [40, 80, 120])
def test_hits_are_short_and_have_whole_ids(shown: Any, width: int) -> None:
    hit = SearchHit(note_id=NOTE_ID, chunk=0, score=0.5, text="some words\n" * 100, source="files")

    text = shown(screen.show_hits, [hit, hit], as_json=False, width=width)

    assert_it_fits(text, width)
    assert text.count(NOTE_ID) == 2
    assert len(text.splitlines()) <= 8


def test_nothing_is_said_to_be_nothing(shown: Any) -> None:
    assert shown(screen.show_rows, [], as_json=False) == "no rows\n"
    assert shown(screen.show_hits, [], as_json=False) == "nothing found\n"
    assert orjson.loads(shown(screen.show_rows, [], as_json=True)) == []


def test_a_summary_has_a_line_for_each_type_the_most_frequent_first(shown: Any) -> None:
    summary = Summary(30, 20, 10, 12_345, {"text/html": 10, "text/markdown": 20}, left_alone=3)
    lines = shown(screen.show_summary, summary, as_json=False).splitlines()
    assert [line.split() for line in lines[-2:]] == [["text/markdown", "20"], ["text/html", "10"]]
    assert ["left_alone", "3"] in [line.split() for line in lines]
    assert orjson.loads(shown(screen.show_summary, summary, as_json=True))["by_content_type"]["text/html"] == 10


def test_progress_tells_count_rate_and_time_left(shown: Any) -> None:
    def advance() -> None:
        with screen.progress("ingesting", quiet=False, total=400) as advance:
            for _ in range(3):
                advance(100)
                time.sleep(0.01)

    last = shown(advance, width=120, terminal=True)
    assert "300/400 documents" in last
    assert re.search(r"[\d,]+/s", last)
    assert re.search(r"\d\d:\d\d.*\d:\d\d:\d\d", last)


def test_what_is_left_alone_is_said_as_it_comes_and_counted(shown: Any) -> None:
    left_alone = screen.LeftAlone()
    assert shown(left_alone, "a.md", HOSTILE) == f"left alone: a.md: {SAFE}\n"
    assert left_alone.count == 1
