"""Characters from bytes, and the format of a text."""

from __future__ import annotations

import time

import pytest

from operators.formats.detect import Detection, Format, decode, detect, is_readable_type, looks_binary
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


@pytest.mark.parametrize(
    ("content", "content_type", "text"),
    [
        (b"caf\xe9", "text/html; charset=ISO-8859-1", "caf\u00e9"),
        (b"caf\xe9 \x80", 'text/plain;charset="windows-1252"', "caf\u00e9 \u20ac"),
        (b"\xcf\xf0\xe8", "text/html; charset=windows-1251", "\u041f\u0440\u0438"),
        (b"\x93\xfa\x96{", "text/html; charset=Shift_JIS", "\u65e5\u672c"),
        (b"<meta charset=gb2312>\xc4\xe3", "text/html", "<meta charset=gb2312>\u4f60"),
        (b"<meta http-equiv=content-type content='text/html; charset=koi8-r'>\xd0", None, None),
        # What is UTF-8 is UTF-8, whatever a server was set up to say.
        ("caf\u00e9".encode(), "text/html; charset=ISO-8859-1", "caf\u00e9"),
    ],
)
def test_old_character_sets_are_read_when_they_are_declared(
    content: bytes, content_type: str | None, text: str | None
) -> None:
    assert decode(content, content_type=content_type).endswith(text or "\u043f")


@pytest.mark.parametrize("name", ["punycode", "idna", "unicode_escape", "zlib", "utf-7", "hex", "no-such", "utf-8"])
def test_a_character_set_that_pages_are_not_written_in_is_not_tried(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode(b"caf\xe9", content_type=f"text/plain; charset={name}")
    assert caught.value.refused.error == "NotUtf8"


@pytest.mark.parametrize(
    ("content_type", "readable"),
    [
        *((said, True) for said in (None, "", "text/html", "Text/Markdown; charset=utf-8", "application/atom+xml")),
        *((said, True) for said in ("application/json", "application/ld+json", "application/octet-stream", "html")),
        *((said, False) for said in ("image/png", "application/pdf", "application/zip", "video/mp4", "nonsense")),
    ],
)
def test_a_type_tells_whether_its_content_may_be_read(content_type: str | None, readable: bool) -> None:
    assert is_readable_type(content_type) is readable


@pytest.mark.parametrize(
    ("start", "binary"),
    [(b"%PDF-1.7", True), (b"a\0b", True), ("\ufeffa".encode("utf-16-le"), False), (b"caf\xe9", False), (b"", False)],
)
def test_binary_content_is_told_by_its_start(start: bytes, binary: bool) -> None:
    assert looks_binary(start) is binary


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
