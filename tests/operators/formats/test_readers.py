"""HTML, JSON, plain text and language; and whatever the text, a reader gives what can be stored."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.formats import child, html_text, json_text, language, markdown_text, plain_text
from operators.formats.detect import Format, decode, detect
from operators.formats.extracted import Extracted, Refusal, Refused, one_line, usable_links
from operators.formats.html_nesting import deeper_than


def error_of(read: Callable[[str], object], text: str) -> str:
    with pytest.raises(Refusal) as caught:
        read(text)
    return caught.value.refused.error


def test_html_gives_what_a_browser_shows() -> None:
    found = html_text.read(
        "<!doctype html><html><head><title> The\n title </title><style>p{}</style></head><body>"
        "<h1>A <b>head</b>ing</h1><p>One\n  two<br>three<p>four <a href='x.html'>link</a>, five"
        "<pre>  keep\n    this</pre><ul><li>a<li>b<ul><li>c</ul></ul>"
        "<table><tr><th>k<th>v<tr><td>1<td>2</table><!-- no --><script>no()</script><noscript>no</noscript>"
        "<template><p>no</template><div>x</div><div>y&nbsp;&lt;z&gt;</div><h2></h2></body></html>"
    )
    assert found.text == (
        "A heading\n\nOne two\nthree\n\nfour link, five\n\n  keep\n    this\n\na\nb\n\nc\n\nk\tv\n1\t2\n\nx\ny <z>"
    )
    assert (found.title, found.headers, found.links) == ("The title", ("A heading",), ("x.html",))


def test_html_without_a_title_is_named_after_its_heading() -> None:
    assert html_text.read("<h2>Head</h2>text").title == "Head"


@pytest.mark.parametrize(
    "source",
    [
        "<div>" * 40_000,
        "<div><span>" * 600 + "text",
        "<span><div></span>" * 600,
        "<span><div></span></div>" * 600,
        "<div></b>" * 600,
        "<div title='>'>" * 600,
        "<!-- <div> --><script></div></div></script><i>" * 600,
        "<svg><g/></svg>" + "<b/>" * 600,
    ],
)
def test_html_nested_too_deep_is_refused_fast(source: str) -> None:
    started = time.perf_counter()
    assert error_of(html_text.read, source) == "TooDeep"
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "source",
    [
        "<p>x" * 5000,
        "<ul>" + "<li>x" * 5000 + "</ul>",
        "<table>" + "<tr><td>x" * 5000 + "</table>",
        "<br>" * 5000,
        "<svg>" + "<path d='M0'/>" * 5000 + "</svg>x",
        "<div><span>x</div>" * 5000,
        "<script>" + "'<div>'" * 5000 + "</script>x",
        "<b>x</b>" * 5000,
        "<!-- " + "<div>" * 5000,
        "<a title='" + "<div>" * 5000,
        "<div>" * 512,
    ],
)
def test_flat_html_is_not_taken_for_deep(source: str) -> None:
    assert not deeper_than(512, source)


@pytest.mark.parametrize("piece", ["<!--", "<a '", "<script>", "</", '<a b="', "<", "<x y"])
def test_measuring_the_depth_takes_linear_time(piece: str) -> None:
    source = piece * (400_000 // len(piece))
    started = time.perf_counter()
    deeper_than(10**6, source)
    assert time.perf_counter() - started < 5


def test_json_gives_all_its_text_in_order() -> None:
    found = json_text.read(
        '{"name":"n","title":"T","body":["one\\r\\ntwo",{"x":"three","u":"https://example.com/a"}],'
        '"n":1,"b":null,"e":" "}'
    )
    assert found.text == "n\nT\none\ntwo\nthree"
    assert (found.title, found.links) == ("T", ("https://example.com/a",))


@pytest.mark.parametrize(("source", "text"), [('"only text"', "only text"), ("[1, 2]", ""), ('["a\\u0000b"]', "ab")])
def test_json_need_not_be_an_object(source: str, text: str) -> None:
    assert json_text.read(source).text == text


def test_json_as_deep_as_its_parser_allows_is_read() -> None:
    assert json_text.read("[" * 1000 + '"x"' + "]" * 1000).text == "x"


@pytest.mark.parametrize(
    ("source", "error"),
    [("[" * 100_000, "TooDeep"), ("[" * 2000 + "]" * 2000, "TooDeep"), ("{", "NotJson"), ("NaN", "NotJson")],
)
def test_json_that_can_not_be_read_is_refused(source: str, error: str) -> None:
    assert error_of(json_text.read, source) == error


def test_plain_text_stays_as_it_is_but_for_line_ends() -> None:
    found = plain_text.read("=====\r\nTitle\r\n=====\r\n\r\n  See https://example.com/a(b).\r")
    assert found.text == "=====\nTitle\n=====\n\n  See https://example.com/a(b)."
    assert (found.title, found.links) == ("Title", ("https://example.com/a",))


def test_headings_links_and_titles_are_bounded() -> None:
    source = "".join(f"# {'h' * 400}{number}\n[l](u{number})\n\n" for number in range(1200))
    found = markdown_text.read(f"---\ntitle: {'t' * 1000}\n---\n{source}")
    assert (len(found.headers), len(found.links)) == (1000, 1000)
    assert max(map(len, (*found.headers, found.title))) == 300
    assert usable_links(["x" * 2049, "data:text/html,x", "http://[", "#a", "", None, " a ", "a"]) == ("a",)
    assert one_line(" a \n b\x00 ") == "a b"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("This is a plain sentence about the weather in autumn.", "en"),
        ("Das ist ein ganz gewöhnlicher Satz über das Wetter im Herbst.", "de"),
        ("short", ""),
        (" " * 100, ""),
    ],
)
def test_the_language_is_named_when_there_is_enough_text(text: str, code: str) -> None:
    assert language.of(text) == code


def test_text_that_only_looked_like_json_is_read_as_plain_text() -> None:
    found = child.extract("[1] A footnote, and more", Format.JSON, declared=False)
    assert isinstance(found, Extracted)
    assert found.text == "[1] A footnote, and more"
    assert isinstance(child.extract("[1] A footnote", Format.JSON, declared=True), Refused)


_MARKUP = (
    *(
        "---\n",
        "a: 1\n",
        "&x ",
        "*x",
        "# ",
        "> ",
        "- ",
        "1. ",
        "\n",
        "\n\n    ",
        "```",
        "`",
        "*",
        "**",
        "_",
        "[",
        "](",
        ")",
    ),
    *(
        "![",
        "|",
        "|-|\n",
        "<div>",
        "</div>",
        "<b>",
        "<!--",
        "-->",
        "<a href=",
        "<script>",
        "<table><tr><td>",
        "&amp;",
    ),
    *("&#0;", "\\", "{", "}", '"', ":", ",", "\ufeff", "\x0b", "ü", "\u2028", "https://x.y/z", "text "),
)


_PIECES = st.lists(st.sampled_from(_MARKUP) | st.text(max_size=6), max_size=40).map("".join)


@given(_PIECES, st.sampled_from(Format), st.booleans())
def test_no_text_makes_a_reader_raise_and_what_it_gives_can_be_stored(
    text: str, document_format: Format, declared: bool
) -> None:
    found = child.extract(text, document_format, declared=declared)
    if isinstance(found, Refused):
        assert found.error != "ParserError", found
        return
    for value in (found.text, found.title, found.frontmatter_json, *found.links, *found.headers):
        value.encode()
        assert "\x00" not in value
        assert "\r" not in value
    assert isinstance(orjson.loads(found.frontmatter_json), dict)
    assert len(set(found.links)) == len(found.links)


@given(st.binary(max_size=60) | _PIECES.map(lambda text: text.encode(errors="replace")))
def test_no_bytes_make_decoding_and_detection_raise(content: bytes) -> None:
    try:
        text = decode(content)
    except Refusal:
        return
    detect(text, content_types=[None], names=[text])
