"""Characters from bytes, and the format of a text."""

from __future__ import annotations

import time

import pytest

from operators.formats.detect import Detection, Format, decode, detect, is_readable_name
from operators.formats.extracted import Refusal


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


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("a.md", True),
        ("docs.old/A.MD", True),
        ("LICENSE", True),
        ("v1.2/Makefile", True),
        ("a.py", True),
        ("logo.png", False),
        ("a.tar.gz", False),
        ("poetry.lock", False),
    ],
)
def test_a_name_tells_whether_a_file_may_be_a_document(name: str, readable: bool) -> None:
    assert is_readable_name(name) is readable
