"""Proves what each reader sees in a document, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.formats import child, front_matter, html_text, json_text, language, markdown_text, plain_text
from operators.formats.detect import Detection, Format, decode, detect
from operators.formats.extracted import Extracted, Refusal, Refused, one_line, usable_links
from operators.formats.html_nesting import deeper_than

MARKDOWN = """\
---
title: The *title*
date: 2026-11-23
tags: [a, b]
---
# First `heading`

A paragraph with *emphasis*, `code` and [a link](https://example.com/x?a=1#f)
on two lines.\\
A hard break, <b>inline HTML</b><br>and <a href="rel/page.md">its link</a>, https://bare.example/y.

- one
- two [mail](mailto:a@example.com) [again](https://example.com/x?a=1#f)
  - three

| Name | Born |
|------|------|
| Ada  | 1815 |

```python
def f():
    return 1
```

<details><summary>More</summary><p>Inside <a href="/absolute">HTML</a></p></details>

> Quoted &amp; ~~gone~~ text <script>alert(1)</script>

Second heading
--------------
![a picture](picture.png) [down](#first) [evil](javascript:alert(1))
"""


def error_of(read: Callable[[str], object], text: str) -> str:
    with pytest.raises(Refusal) as caught:
        read(text)
    return caught.value.refused.error


def test_markdown_gives_what_a_reader_sees() -> None:
    found = markdown_text.read(MARKDOWN)
    assert found.text == (
        "First heading\n\n"
        "A paragraph with emphasis, code and a link on two lines.\n"
        "A hard break, inline HTML\nand its link, https://bare.example/y.\n\n"
        "one\ntwo mail again\nthree\n\n"
        "Name\tBorn\nAda\t1815\n\n"
        "def f():\n    return 1\n\n"
        "More\n\nInside HTML\n\n"
        "Quoted & gone text\n\n"
        "Second heading\n\n"
        "down [evil](javascript:alert(1))"
    )
    assert found.title == "The *title*"
    assert found.headers == ("First heading", "Second heading")
    assert found.links == (
        "https://example.com/x?a=1#f",
        "rel/page.md",
        "https://bare.example/y",
        "mailto:a@example.com",
        "/absolute",
    )
    assert orjson.loads(found.frontmatter_json) == {"title": "The *title*", "date": "2026-11-23", "tags": ["a", "b"]}


def test_markdown_without_front_matter_is_named_after_its_first_heading() -> None:
    assert markdown_text.read("text\n\n## A *heading*\n\n# Another").title == "A heading"
    assert markdown_text.read("<h1 align=center>From <i>HTML</i></h1>\n\n# Another").title == "From HTML"


@pytest.mark.parametrize("text", ["---\n\nafter a rule\n\n---\nmore", "---\nno end", "text\n---\na: 1\n---\n", ""])
def test_dashes_alone_are_no_front_matter(text: str) -> None:
    assert front_matter.split(text) == (None, text)


@pytest.mark.parametrize(
    ("source", "mapping"),
    [
        ("# only a comment", {}),
        ("a: 2026-02-30\nb: 12:30:45\n", {"a": "2026-02-30", "b": 45045}),
        ("a: 99999999999999999999\nb: .nan\nc: .inf", {"a": "0x56bc75e2d630fffff", "b": "nan", "c": "inf"}),
        ("7: x\nnull: y\non: z\n2026-01-01: d", {"7": "x", "null": "y", "true": "z", "2026-01-01": "d"}),
        ("a: !!set {x, y}\nb: !!binary aGk=", {"a": ["x", "y"], "b": "b'hi'"}),
        ('a: "\\0x"', {"a": "x"}),
    ],
)
def test_front_matter_becomes_what_json_can_hold(source: str, mapping: dict[str, object]) -> None:
    found = front_matter.read(source)
    for value in found.values():
        if isinstance(value, list):
            value.sort()
    assert found == mapping
    assert orjson.loads(front_matter.to_json(found)) == mapping


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("a: [", "NotYaml"),
        ("\tx", "NotYaml"),
        ("just text", "NotYaml"),
        ("- a\n- b", "NotYaml"),
        ("a: !!python/object/apply:os.system [x]", "NotYaml"),
        ("a: !!int x", "NotYaml"),
        ("a: !!timestamp 2026-02-30", "NotYaml"),
        ("{a: 1}: b", "NotYaml"),
        ("a: 1\n---x\nb", "NotYaml"),
        ("a: &x [1]\nb: *x", "UnsafeYaml"),
        ("a: " + "[" * 40 + "]" * 40, "TooDeep"),
        ("a: " + "[" * 60_000, "TooDeep"),
        ("9" * 5000 + ": 1", "NotYaml"),
        ("a: " + "9" * 5000, "NotYaml"),
    ],
)
def test_front_matter_that_is_no_safe_mapping_is_refused(source: str, error: str) -> None:
    assert error_of(front_matter.read, source) == error


def test_a_yaml_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert error_of(markdown_text.read, "---\n" + "\n".join(lines) + "\n---\ntext") == "UnsafeYaml"


def test_front_matter_is_limited_in_size() -> None:
    def document(characters: int) -> str:
        return "---\na: " + "x" * (characters - 4) + "\n---\ntext"

    assert markdown_text.read(document(front_matter.MAX_CHARACTERS)).text == "text"
    assert error_of(markdown_text.read, document(front_matter.MAX_CHARACTERS + 1)) == "TooLarge"


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


@pytest.mark.parametrize(
    ("source", "depth_is_fine"),
    [
        (">" * 90 + " x", True),
        (">" * 10_000 + " x", False),
        ("- " * 40 + "x", True),
        ("- " * 400 + "x", False),
        ("[" * 2000, True),
        ("*a **b " * 300, True),
    ],
)
def test_markdown_is_never_cut_in_silence(source: str, depth_is_fine: bool) -> None:
    if depth_is_fine:
        assert markdown_text.read(source).text
    else:
        assert error_of(markdown_text.read, source) == "TooDeep"


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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain", "plain"),
        ("ü".encode(), "ü"),
        (b"\xef\xbb\xbfx", "x"),
        ("\ufeffü".encode("utf-16-le"), "ü"),
        ("\ufeffü".encode("utf-16-be"), "ü"),
        ("\ufeffü".encode("utf-32-le"), "ü"),
    ],
)
def test_byte_order_marks_are_honoured(content: bytes, text: str) -> None:
    assert decode(content) == text


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "EmptyDocument"),
        (b" \n\t ", "EmptyDocument"),
        (b"\xef\xbb\xbf", "EmptyDocument"),
        (b"caf\xe9", "NotUtf8"),
        (b"\xff\xfex", "NotUtf16"),
        (b"%PDF-1.7\n", "UnsupportedFormat"),
        (b"PK\x03\x04rest", "UnsupportedFormat"),
        (b"\x89PNG\r\n\x1a\n", "UnsupportedFormat"),
        (b"text\x00text", "UnsupportedFormat"),
        (b"\x00\xff\xfe", "UnsupportedFormat"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, error: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode(content)
    assert caught.value.refused.error == error


def test_a_refusal_names_the_format_that_is_not_supported() -> None:
    with pytest.raises(Refusal) as caught:
        decode(b"%PDF-1.7")
    assert "PDF" in caught.value.refused.message


@pytest.mark.parametrize(
    ("content_type", "names", "text", "format_name", "declared"),
    [
        ("text/markdown; charset=UTF-8", ["a.html"], "x", "MARKDOWN", True),
        ("TEXT/HTML", ["a.md"], "x", "HTML", True),
        ("json", [], "x", "JSON", True),
        ("text/plain", ["docs/a.MD"], "x", "MARKDOWN", True),
        (None, ["", "/page.html?x=a.md", "raw/1"], "x", "HTML", True),
        (None, ["README.rst"], "# x", "PLAIN", True),
        (None, ["v1.2/LICENSE"], "x", "PLAIN", False),
        ("application/octet-stream", ["raw/abc"], "\n<!-- c --><!DOCTYPE html>", "HTML", False),
        (None, [], "<html><p>", "HTML", False),
        (None, [], ' {"a": 1}', "JSON", False),
        (None, [], "[![badge](b)](c)\n", "MARKDOWN", False),
        (None, [], "---\r\na: 1\r\n---\r\n", "MARKDOWN", False),
        (None, [], "text\n\n## Heading\n", "MARKDOWN", False),
        (None, [], "see [this](https://example.com)", "MARKDOWN", False),
        (None, [], "Title\n=====\n\nIt costs #1.", "PLAIN", False),
    ],
)
def test_a_format_is_told_by_declaration_then_name_then_content(
    content_type: str | None, names: list[str], text: str, format_name: str, declared: bool
) -> None:
    assert detect(text, content_types=[content_type], names=names) == Detection(Format[format_name], declared)


def test_telling_the_format_of_hostile_text_is_quick() -> None:
    started = time.perf_counter()
    for piece in ("[", "[](", "![a]", "| ", "<!-- ", "---\n", "`", " ", "[a](b\n"):
        detect(piece * 100_000, content_types=[], names=[])
    assert time.perf_counter() - started < 5


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
