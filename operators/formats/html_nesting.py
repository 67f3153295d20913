"""Measures how deep HTML is nested, in linear time, before a parser whose time grows with the square of it sees it.

It follows the part of the HTML standard's tree construction that decides about depth (void elements, raw text,
implied end tags, "any other end tag"). The standard's rarer ways to build deep trees (active formatting
elements) are left to the time and memory limits of the parser's process.
"""

from __future__ import annotations

import re

__all__ = ["deeper_than"]

_MARKUP = re.compile(r"<(?:(!--)|(/?)([a-zA-Z][^\s/>]*))")
_IN_TAG = re.compile(r"[\"'>]")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VOID = _names("area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr")
_RAW_TEXT = _names("script style textarea title xmp iframe noembed noframes")
_RAW_TEXT_ENDS = {name: re.compile(f"</{name}", re.IGNORECASE) for name in _RAW_TEXT}
# These close each other by themselves, so a thousand of them without end tags are a list, not a depth.
_IMPLIED = _names(
    "html head body p li dt dd option optgroup tr td th thead tbody tfoot caption colgroup rb rt rtc rp"
)
_FOREIGN = _names("svg math")
# An end tag of any other element stops at one of these ("special" in the standard).
_SPECIAL = _names(
    "address applet article aside blockquote button center details dialog dir div dl fieldset figcaption figure"
    " footer form frameset h1 h2 h3 h4 h5 h6 header hgroup listing main marquee menu nav object ol pre search"
    " section select summary table template ul"
)


def deeper_than(limit: int, html: str) -> bool:
    """Tell whether elements are nested deeper than `limit`; list items, cells and paragraphs don't count."""
    open_elements: list[str] = []
    position = 0
    while (markup := _MARKUP.search(html, position)) is not None:
        position = markup.end()
        if markup[1]:
            position = html.find("-->", position)
            if position < 0:
                return False
            continue
        name = markup[3].lower()
        end, self_closed = _tag_end(html, position)
        if end < 0:
            return False
        position = end
        if markup[2]:
            _close(open_elements, name)
        elif name in _RAW_TEXT and not _FOREIGN.intersection(open_elements):
            raw_text_end = _RAW_TEXT_ENDS[name].search(html, position)
            if raw_text_end is None:
                return False
            position = raw_text_end.start()
        elif name not in _VOID and name not in _IMPLIED:
            if self_closed and _FOREIGN.intersection(open_elements):
                continue
            open_elements.append(name)
            if len(open_elements) > limit:
                return True
    return False


def _tag_end(html: str, position: int) -> tuple[int, bool]:
    # A ">" inside quotes does not end the tag. Each step moves on, so the scan stays linear.
    while (found := _IN_TAG.search(html, position)) is not None:
        if found[0] == ">":
            return found.end(), html[found.start() - 1] == "/"
        position = html.find(found[0], found.end()) + 1
        if not position:
            return -1, False
    return -1, False


def _close(open_elements: list[str], name: str) -> None:
    if name in _VOID or name in _IMPLIED:
        return
    for index in range(len(open_elements) - 1, -1, -1):
        if open_elements[index] == name:
            del open_elements[index:]
            return
        if name not in _SPECIAL and open_elements[index] in _SPECIAL:
            return
