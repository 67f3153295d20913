"""Markdown (CommonMark with tables and strike-through) and its YAML front matter: the text that a reader sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from operators.formats import front_matter, html_text
from operators.formats.extracted import Extracted, Refusal, clean, headings, links_in, one_line, usable_links
from operators.formats.text_writer import TextWriter

__all__ = ["read"]

MAX_NESTING = 100

_INLINE_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_INLINE_LINK = re.compile(r"""\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_PARAGRAPHS = frozenset(("heading_open", "blockquote_open", "table_open", "hr"))


def read(content: str) -> Extracted:
    """Return the visible text without markup, in reading order.

    Raises Refusal for front matter that is not a safe YAML mapping, and for blocks nested deeper than 100 levels.
    """
    source, body = front_matter.split(clean(content))
    mapping = front_matter.read(source) if source is not None else {}
    tokens = _parser().parse(body)
    # The parser drops what is nested deeper than its limit without a word; a document is never cut in silence.
    if any(token.nesting == 1 and token.level >= MAX_NESTING - 1 for token in tokens):
        raise Refusal("TooDeep", f"Markdown is nested deeper than {MAX_NESTING} levels")
    page = _Page()
    page.write(tokens)
    headers = headings(page.headings)
    title = mapping.get("title")
    named = one_line(str(title)) if isinstance(title, str | int | float) and not isinstance(title, bool) else ""
    return Extracted(
        text=clean(page.writer.text()),
        title=named or next(iter(headers), ""),
        frontmatter_json=front_matter.to_json(mapping),
        links=usable_links(page.links),
        headers=headers,
    )


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])


class _Page:
    """Walks the parser's tokens once and gathers text, headings and links."""

    def __init__(self) -> None:
        self.writer = TextWriter()
        self.headings: list[str] = []
        self.links: list[str] = []
        self._cells_in_row = 0
        self._heading_mark: int | None = None

    def write(self, tokens: Sequence[Token]) -> None:
        writer = self.writer
        for token in tokens:
            kind = token.type
            if kind == "inline":
                self._write_inline(token.children or ())
            elif kind in ("fence", "code_block"):
                writer.paragraph()
                writer.preformatted(token.content.rstrip("\n"))
                writer.paragraph()
            elif kind == "html_block":
                writer.paragraph()
                found_headings, links = html_text.write_fragment(token.content, writer)
                self.headings += found_headings
                self.links += links
                writer.paragraph()
            elif kind == "paragraph_open" and token.hidden:
                # A tight list's item.
                writer.line()
            elif kind in ("paragraph_open", "paragraph_close"):
                if not token.hidden:
                    writer.paragraph()
            elif kind == "heading_close" and self._heading_mark is not None:
                self.headings.append(writer.since(self._heading_mark))
                self._heading_mark = None
                writer.paragraph()
            elif kind in _PARAGRAPHS:
                writer.paragraph()
                if kind == "heading_open":
                    self._heading_mark = writer.mark()
            elif kind in ("bullet_list_open", "ordered_list_open", "bullet_list_close", "ordered_list_close"):
                if token.level == 0:
                    writer.paragraph()
            elif kind == "list_item_open":
                writer.line()
            elif kind == "tr_open":
                self._cells_in_row = 0
                writer.line()
            elif kind in ("th_open", "td_open"):
                self._cells_in_row += 1
                if self._cells_in_row > 1:
                    writer.cell()

    def _write_inline(self, tokens: Sequence[Token]) -> None:
        writer = self.writer
        hidden: str | None = None
        for token in tokens:
            kind = token.type
            if kind == "html_inline":
                hidden = self._inline_tag(token.content, hidden)
            elif hidden is not None:
                continue
            elif kind in ("text", "text_special"):
                writer.inline(token.content)
                self.links += links_in(token.content)
            elif kind == "code_inline":
                writer.inline(token.content)
            elif kind == "softbreak":
                writer.inline(" ")
            elif kind == "hardbreak":
                writer.line()
            elif kind == "link_open":
                self.links.append(str(token.attrs.get("href", "")))

    def _inline_tag(self, source: str, hidden: str | None) -> str | None:
        """Note what an inline tag means; returns the element whose text is hidden from now on, if any."""
        tag = _INLINE_TAG.match(source)
        if tag is None:
            return hidden
        name = tag[2].lower()
        if tag[1]:
            return None if name == hidden else hidden
        if name == "br":
            self.writer.line()
        elif name == "a":
            link = _INLINE_LINK.search(source)
            if link is not None:
                self.links.append(next(part for part in link.groups() if part is not None))
        elif name in ("script", "style") and hidden is None:
            return name
        return hidden
