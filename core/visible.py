"""Makes text that others wrote safe to show on a terminal: what would command the terminal is spelt out instead."""

from __future__ import annotations

import re

__all__ = ["visible", "visible_json"]

# Control characters (escape sequences begin with one), line separators, marks that turn the direction of writing
# round, and halves of surrogate pairs, which can't be encoded.
_COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_WITHIN_LINES = re.compile(f"[{_COMMANDS}]")
_EVERYWHERE = re.compile(f"[{_COMMANDS}\t\n]")


def visible(text: str, *, keep_lines: bool = False) -> str:
    r"""Return `text` with escapes such as \x1b in place of what a terminal would obey.

    A line end is spelt out too, since a name must not look like two lines of a log, unless `keep_lines` is set.
    """
    return (_WITHIN_LINES if keep_lines else _EVERYWHERE).sub(_escaped, text)


def visible_json(text: str) -> str:
    """Do the same to serialised JSON, where such characters stand in strings only: its value stays the same."""
    return _WITHIN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()
