"""Where producers go on: kept on S3, replaced only by whoever read the newest."""

from __future__ import annotations

import pytest

from core.errors import FencedError, MissingError
from core.settings import Settings
from producers.cursors import load_cursor, save_cursor


def test_a_cursor_is_empty_at_first_and_then_what_was_saved(settings: Settings) -> None:
    first = load_cursor(settings, kind="git", name="https://example.org/notes.git\nref main")
    assert (first.value, first.e_tag) == ({}, None)

    saved = save_cursor(settings, first, {"commit": "abc"})
    assert load_cursor(settings, kind="git", name=first.name) == saved
    assert load_cursor(settings, kind="web", name=first.name).value == {}

    save_cursor(settings, saved, {"commit": "def"})
    assert load_cursor(settings, kind="git", name=first.name).value == {"commit": "def"}


def test_of_two_runs_that_read_the_same_cursor_one_moves_it(settings: Settings) -> None:
    first = load_cursor(settings, kind="api", name="a")
    save_cursor(settings, first, {"page": 1})
    with pytest.raises(FencedError, match="another run"):
        save_cursor(settings, first, {"page": 2})
    stale = load_cursor(settings, kind="api", name="a")
    save_cursor(settings, stale, {"page": 2})
    with pytest.raises(FencedError, match="another run"):
        save_cursor(settings, stale, {"page": 3})


def test_a_missing_bucket_is_named(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"bucket": "nowhere"})
    with pytest.raises(MissingError, match='bucket "nowhere" does not exist'):
        save_cursor(elsewhere, load_cursor(elsewhere, kind="git", name="a"), {})
