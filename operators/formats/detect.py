"""Tells what a document is: characters from bytes, and the format from declaration, name and content."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from w3lib.encoding import html_body_declared_encoding, http_content_type_encoding

from operators.formats.extracted import Refusal

__all__ = ["Detection", "Format", "decode", "detect", "is_readable_type", "looks_binary"]

SNIFFED_CHARACTERS = 8_192
# The HTML standard looks for a declaration in the first 1,024 bytes; pages don't.
SNIFFED_BYTES = 4_096


class Format(Enum):
    """The formats that have a reader; the value is the content type that the tables show."""

    MARKDOWN = "text/markdown"
    HTML = "text/html"
    JSON = "application/json"
    PLAIN = "text/plain"


@dataclass(frozen=True, slots=True)
class Detection:
    """A format, and whether the document was said to have it (else it only looks like it)."""

    format: Format
    declared: bool


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16, so it is looked for first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BINARY = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "ZIP (or an office document)"),
    (b"PK\x05\x06", "ZIP"),
    (b"\x89PNG", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "7-Zip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\x7fELF", "ELF program"),
    (b"\xd0\xcf\x11\xe0", "old office document"),
    (b"{\\rtf", "RTF"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"PAR1", "Parquet"),
)
_TYPES = {
    "text/markdown": Format.MARKDOWN,
    "text/x-markdown": Format.MARKDOWN,
    "markdown": Format.MARKDOWN,
    "text/html": Format.HTML,
    "application/xhtml+xml": Format.HTML,
    "html": Format.HTML,
    "application/json": Format.JSON,
    "text/json": Format.JSON,
    "json": Format.JSON,
    "text/x-rst": Format.PLAIN,
    "text/prs.fallenstein.rst": Format.PLAIN,
}
_PLAIN_SUFFIXES = """
    txt text rst log csv tsv jsonl ndjson xml svg yaml yml toml ini cfg tex adoc org
    py pyi js ts java c h cc cpp hpp go rs rb sh sql css scala kt swift
"""
_SUFFIXES = {
    **dict.fromkeys(("md", "markdown", "mdown", "mkd", "mdx"), Format.MARKDOWN),
    **dict.fromkeys(("html", "htm", "xhtml"), Format.HTML),
    **dict.fromkeys(("json", "geojson", "ipynb"), Format.JSON),
    **dict.fromkeys(_PLAIN_SUFFIXES.split(), Format.PLAIN),
}
# Those of the Encoding standard that UTF-8 can be told from, as Python calls what w3lib makes of their labels.
_CHARACTER_SETS = frozenset(
    (
        *(f"cp{number}" for number in (866, 874, 932, 949, *range(1250, 1259))),
        *(f"iso8859-{number}" for number in range(2, 17)),
        *("koi8-r", "koi8-u", "mac-roman", "gb18030", "big5hkscs", "euc_jp"),
    )
)
_READABLE_TYPES = frozenset(
    f"application/{name}"
    for name in ("octet-stream", "xml", "yaml", "x-yaml", "toml", "jsonl", "x-ndjson", "javascript", "x-tex")
)
_HTML_START = re.compile(
    r"\s*(?:<!--.{0,512}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_FRONT_MATTER_START = re.compile(r"---[ \t]*\n[^\n]*\S")
_MARKDOWN_LINE = re.compile(
    r"^(?: {0,3}#{1,6} +\S| {0,3}```|[^\n]{0,400}!?\[[^\]\n]{1,200}\]\([^)\s]{1,400}\)| {0,3}\|[ :|-]*-{3}[ :|-]*\|)",
    re.MULTILINE,
)


def decode(content: bytes, *, content_type: str | None = None) -> str:
    """Return the characters of `content`: UTF-8, or what its byte order mark says, or else what is declared.

    What is no UTF-8 is read in the character set of the `content_type`, or of the document's own `<meta>`, when that
    is one of those that web pages have been written in. Raises Refusal for empty, binary and wrongly encoded content.
    """
    for magic, name in _BINARY:
        if content.startswith(magic):
            raise Refusal("UnsupportedFormat", f"the format {name} is not supported: only text documents are read")
    mark, encoding = next(((mark, encoding) for mark, encoding in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if b"\x00" in content and not mark:
            raise Refusal("UnsupportedFormat", "binary content (it has NUL bytes) is not supported") from None
        declared = None if mark else _in_declared_set(content, content_type)
        if declared is None:
            raise Refusal(
                f"Not{encoding.replace('-le', '').replace('-be', '').replace('utf-', 'Utf')}",
                f"byte {error.start + len(mark)} is not valid {encoding.upper()}",
            ) from None
        text = declared
    if "\x00" in text:
        raise Refusal("UnsupportedFormat", "binary content (it has NUL bytes) is not supported")
    if not text.strip():
        raise Refusal("EmptyDocument", "the object has no text: it is empty or white space only")
    return text


def detect(text: str, *, content_types: Iterable[str | None], names: Iterable[str]) -> Detection:
    """Return the format of `text`.

    A content type that names a format wins (`text/plain` and `application/octet-stream` are what servers say when
    they don't know, so they don't count), then the suffix of the first name that has a known one, then the content.
    """
    for content_type in content_types:
        declared = _TYPES.get((content_type or "").partition(";")[0].strip().lower())
        if declared is not None:
            return Detection(declared, declared=True)
    for name in names:
        path = name.partition("?")[0].partition("#")[0]
        known = _SUFFIXES.get(path.rpartition("/")[2].rpartition(".")[2].lower()) if "." in path else None
        if known is not None:
            return Detection(known, declared=True)
    return Detection(_sniffed(text[:SNIFFED_CHARACTERS].replace("\r\n", "\n")), declared=False)


def is_readable_type(content_type: str | None) -> bool:
    """Tell whether content that is said to be of this type may be a document: text, or nothing known is said."""
    said = (content_type or "application/octet-stream").partition(";")[0].strip().lower()
    return said in _TYPES or said in _READABLE_TYPES or said.startswith("text/") or said.endswith(("+xml", "+json"))


def looks_binary(start: bytes) -> bool:
    """Tell whether content that begins like this is refused by `decode`: it has a binary format's mark, or NUL."""
    marked = any(start.startswith(mark) for mark, _ in _MARKS)
    return any(start.startswith(magic) for magic, _ in _BINARY) or (not marked and b"\0" in start)


def _in_declared_set(content: bytes, content_type: str | None) -> str | None:
    for name in (http_content_type_encoding(content_type), html_body_declared_encoding(content[:SNIFFED_BYTES])):
        # Python knows more, some of them slow and some not meant for text.
        if name in _CHARACTER_SETS:
            try:
                return content.decode(name)
            except UnicodeDecodeError:
                continue
    return None


def _sniffed(start: str) -> Format:
    if _HTML_START.match(start):
        return Format.HTML
    if start.lstrip()[:1] in {"{", "["} and not start.lstrip().startswith(("[!", "[![")):
        return Format.JSON
    if _FRONT_MATTER_START.match(start) or _MARKDOWN_LINE.search(start):
        return Format.MARKDOWN
    return Format.PLAIN
