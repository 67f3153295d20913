"""HTML: the main text that a browser would show, with title, headings and links."""

from __future__ import annotations

from collections.abc import Callable

from selectolax.lexbor import LexborHTMLParser, LexborNode

from operators.formats.extracted import Extracted, Refusal, clean, headings, one_line, usable_links
from operators.formats.html_main import is_beside, main_element
from operators.formats.html_nesting import deeper_than
from operators.formats.text_writer import TextWriter

__all__ = ["read", "write_fragment"]

MAX_NESTING = 512
# A main text of so many characters is one, however much there is beside it; a shorter one must be a part like this.
ENOUGH_CHARACTERS = 500
LEAST_SHARE = 0.25


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HIDDEN = _names("head script style noscript template svg math iframe object")
_PARAGRAPHS = _names(
    "p h1 h2 h3 h4 h5 h6 blockquote pre table ul ol dl article aside section figure header footer main nav hr form"
    " details"
)
_LINES = _names("address br caption dd div dt fieldset figcaption legend li option summary td th tr")
_HEADINGS = _names("h1 h2 h3 h4 h5 h6")
_CELLS = _names("td th")


def read(content: str) -> Extracted:
    """Return the visible text without navigation, footers and the like; scripts, styles and templates are none.

    A page whose main text can't be told from the rest is read whole. Raises Refusal when elements are nested deeper
    than 512 levels.
    """
    parser = _parsed(content)
    writer, found_headings, links = _main_text(parser)
    title_node = parser.css_first("title")
    title = one_line(title_node.text()) if title_node is not None else ""
    headers = headings(found_headings)
    return Extracted(
        text=clean(writer.text()),
        title=title or next(iter(headers), ""),
        links=usable_links(links),
        headers=headers,
    )


def write_fragment(content: str, writer: TextWriter) -> tuple[list[str], list[str]]:
    """Write the visible text of a piece of HTML; returns its headings and links."""
    root = _parsed(content).root
    return ([], []) if root is None else _write(root, writer)


def _parsed(content: str) -> LexborHTMLParser:
    if deeper_than(MAX_NESTING, content):
        raise Refusal("TooDeep", f"HTML is nested deeper than {MAX_NESTING} elements")
    return LexborHTMLParser(content)


def _main_text(parser: LexborHTMLParser) -> tuple[TextWriter, list[str], list[str]]:
    """Write the first of these that is not too little: the main element, the page without what is beside its text,
    the whole page."""
    main = main_element(parser)
    written: list[tuple[TextWriter, list[str], list[str]]] = []
    for root, leave_out in ((main, is_beside), (parser.root, is_beside), (parser.root, None)):
        if root is None:
            continue
        writer = TextWriter()
        written.append((writer, *_write(root, writer, leave_out)))
        if len(writer.text()) >= ENOUGH_CHARACTERS:
            break
    # The page is short, or its elements are not what they are called.
    least = len(written[-1][0].text()) * LEAST_SHARE
    return next((part for part in written if len(part[0].text()) >= least), (TextWriter(), [], []))


def _write(
    root: LexborNode, writer: TextWriter, leave_out: Callable[[LexborNode, str], bool] | None = None
) -> tuple[list[str], list[str]]:
    found_headings: list[str] = []
    links: list[str] = []
    preformatted = 0
    heading_mark: int | None = None
    cells_in_row = 0
    # A stack of its own: the tree may be deeper than Python's recursion limit.
    stack: list[tuple[LexborNode, str, bool]] = []
    stack.append((root, root.tag or "", False))
    while stack:
        node, tag, leaving = stack.pop()
        if leaving:
            if tag == "pre":
                preformatted -= 1
            if tag in _HEADINGS and heading_mark is not None:
                found_headings.append(writer.since(heading_mark))
                heading_mark = None
        else:
            following = node.next
            if following is not None and node is not root:
                stack.append((following, following.tag or "", False))
            if tag == "-text":
                text = node.text_content or ""
                if preformatted:
                    writer.preformatted(text)
                else:
                    writer.inline(text)
                continue
            if tag.startswith("-") or tag in _HIDDEN:
                continue
            if leave_out is not None and node is not root and leave_out(node, tag):
                continue
            if tag == "tr":
                cells_in_row = 0
            elif tag == "pre":
                preformatted += 1
            elif tag == "a":
                links.append(node.attributes.get("href") or "")
        if tag in _CELLS:
            if not leaving:
                cells_in_row += 1
                if cells_in_row > 1:
                    writer.cell()
        elif tag in _PARAGRAPHS:
            writer.paragraph()
        elif tag in _LINES:
            writer.line()
        if not leaving:
            if tag in _HEADINGS and heading_mark is None:
                heading_mark = writer.mark()
            child = node.first_child
            if child is not None or tag in _PARAGRAPHS or tag in _LINES:
                stack.append((node, tag, True))
            if child is not None:
                stack.append((child, child.tag or "", False))
    return found_headings, links
