"""Content types: by name, else by what the bytes are, and never a guess that would mislead the flow."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.content_types import content_type_of, detect_content_type


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, text in files.items():
            opened.writestr(name, text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.md", "text/markdown"),
        ("A.MARKDOWN", "text/markdown"),
        ("a.rst", "text/x-rst"),
        ("a.txt", "text/plain"),
        ("a.htm", "text/html"),
        ("a.json", "application/json"),
        ("a.pdf", "application/pdf"),
        ("a.md.gz", "application/gzip"),
        ("LICENSE", None),
        ("a.unheard-of", None),
    ],
)
def test_the_suffix_tells_the_content_type(name: str, content_type: str | None) -> None:
    assert content_type_of(name) == content_type


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "image/png"),
        (b"\x1f\x8b\x08" + bytes(20), "application/x-gzip"),
        (archive(mimetype="application/epub+zip"), "application/epub+zip"),
        (archive(a="b"), "application/zip"),
        (b"", "text/plain"),
        (b"# Markdown, of which the flow finds out\n", "text/plain"),
        (b"BM is how a bitmap begins, and this text", "text/plain"),
        ("Gr\u00fc\u00dfe ".encode() * 3000, "text/plain"),
        ("text".encode("utf-16"), "text/plain"),
        (bytes(range(256)), "application/octet-stream"),
        (b"caf\xe9", "application/octet-stream"),
    ],
)
def test_without_a_name_the_bytes_tell(content: bytes, content_type: str) -> None:
    assert detect_content_type(content) == content_type


def test_the_name_goes_before_the_bytes() -> None:
    assert detect_content_type(b"plain", name="a.md") == "text/markdown"
    assert detect_content_type(b"plain", name="README") == "text/plain"


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_have_a_type_that_a_record_can_name(content: bytes) -> None:
    assert detect_content_type(content).isprintable()


@settings(deadline=None)
@given(st.text(min_size=1, max_size=200).filter(lambda text: "\0" not in text and text.isprintable()))
def test_text_is_text_whatever_it_begins_with(text: str) -> None:
    kind = detect_content_type(text.encode())
    assert kind == "text/plain" or text.startswith(("%PDF-", "{\\rtf", "%!PS"))
