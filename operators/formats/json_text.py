"""JSON documents: every piece of text in them, in order."""

from __future__ import annotations

import re
from typing import Any

import orjson

from operators.formats.extracted import Extracted, Refusal, clean, links_in, one_line, usable_links

__all__ = ["read"]

LARGE_CHARACTERS = 1024**2
TITLE_KEYS = ("title", "name", "headline", "subject")
_ONLY_AN_ADDRESS = re.compile(r"(?:https?://|mailto:)\S+")


def read(content: str) -> Extracted:
    """Return all strings of the document that are not addresses, a line each; addresses are its links.

    Raises Refusal when it is not JSON, or is nested deeper than 1,024 levels (orjson's limit).
    """
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("depth limit"):
            raise Refusal("TooDeep", "JSON is nested deeper than 1024 levels") from None
        # orjson names memory for some small texts that are only cut off, too.
        if "memory" in error.msg and len(content) > LARGE_CHARACTERS:
            raise Refusal("OutOfMemory", "reading the JSON takes more memory than a parser may have") from None
        # The position only: orjson's text can quote the document.
        raise Refusal("NotJson", f"not valid JSON at line {error.lineno}, column {error.colno}") from None
    strings = _strings(value)
    addresses = [text for text in strings if _ONLY_AN_ADDRESS.fullmatch(text)]
    text = clean("\n".join(text for text in strings if text.strip() and not _ONLY_AN_ADDRESS.fullmatch(text)))
    return Extracted(text=text, title=_title(value), links=usable_links([*addresses, *links_in(text)]))


def _strings(value: Any) -> list[str]:
    # A stack instead of recursion: 1,024 levels are more than Python's own limit allows.
    found: list[str] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, list):
            stack.extend(reversed(item))
    return found


def _title(value: Any) -> str:
    if isinstance(value, dict):
        for key in TITLE_KEYS:
            title = value.get(key)
            if isinstance(title, str) and title.strip():
                return one_line(title)
    return ""
