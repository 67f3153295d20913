"""Where a page leads to."""

from __future__ import annotations

import httpx2
from selectolax.lexbor import LexborHTMLParser

from operators.formats.html_nesting import deeper_than
from producers.web.urls import link_target

__all__ = ["links_of"]

MAX_LINKS = 1_000
# A page this long has a navigation at its head; the time of the parser is bounded by it, and by the nesting.
READ_BYTES = 2 * 1024 * 1024
MAX_NESTING = 256


def links_of(content: bytes, url: httpx2.URL) -> list[httpx2.URL]:
    """Return the pages that an HTML page links to, each once, in order, at most 1,000; without those for no robot.

    `rel="nofollow"` is respected. Addresses are ASCII but for what is escaped, so the page's encoding does not
    matter here. A page that is nested too deep for a parser to be quick leads nowhere.
    """
    text = content[:READ_BYTES].decode("utf-8", errors="replace")
    if deeper_than(MAX_NESTING, text):
        return []
    parser = LexborHTMLParser(text)
    base_node = parser.css_first("base[href]")
    base = str(url)
    if base_node is not None:
        declared = link_target(base, base_node.attributes.get("href") or "")
        base = base if declared is None else str(declared)
    found: dict[str, httpx2.URL] = {}
    for node in parser.css("a[href], area[href]"):
        if "nofollow" in (node.attributes.get("rel") or "").lower().split():
            continue
        target = link_target(base, node.attributes.get("href") or "")
        if target is not None:
            found.setdefault(str(target), target)
            if len(found) == MAX_LINKS:
                break
    return list(found.values())
