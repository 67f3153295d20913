"""Plain text, and everything that is read as such: reStructuredText, code, logs."""

from __future__ import annotations

from operators.formats.extracted import Extracted, clean, links_in, one_line, usable_links

__all__ = ["first_line", "read"]

MAX_FIRST_LINE_CHARACTERS = 160


def read(content: str) -> Extracted:
    """Return the text as it is; a short first line is its title."""
    text = clean(content).strip("\n")
    title = first_line(text)
    return Extracted(
        text=text,
        title=title if len(title) <= MAX_FIRST_LINE_CHARACTERS else "",
        links=usable_links(links_in(text)),
    )


def first_line(text: str) -> str:
    """Return the first line that has a letter or digit, so that an underline or a rule is none."""
    for line in text[:16_384].split("\n"):
        if any(character.isalnum() for character in line):
            return one_line(line)
    return ""
