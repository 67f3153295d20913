"""Tells the content type of what a source gives no type for: by its name, else by its first bytes.

Only what the flow can't tell by itself is looked for: the type of binary content, for the dead letter that says why
it was refused and for the summary. Of text that nothing else is known of the flow looks closer
(`operators.formats.detect`), which a type from here would keep it from.
"""

from __future__ import annotations

from mimetypes import MimeTypes

import puremagic

__all__ = ["content_type_of", "detect_content_type"]

UNKNOWN = "application/octet-stream"
TEXT = "text/plain"
ARCHIVE = "application/zip"
# Signatures are within the first bytes, but for a few at the end, which archives have.
SAMPLE_BYTES = 8_192
# A signature of two letters is also how a text may begin.
LEAST_CONFIDENCE = 0.3
OFFICE_CONFIDENCE = 0.5

# A table of our own: what the machine has in /etc must not change what a suffix means.
_TYPES = MimeTypes(filenames=())
for _suffix, _type in {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".mdown": "text/markdown",
    ".rst": "text/x-rst",
    ".org": "text/x-org",
    ".adoc": "text/asciidoc",
    ".log": "text/plain",
    ".text": "text/plain",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/jsonl",
}.items():
    _TYPES.add_type(_type, _suffix)
_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


def content_type_of(name: str) -> str | None:
    """Tell the content type from a file name's suffix; None when the suffix says nothing."""
    kind, encoding = _TYPES.guess_type(name)
    return _COMPRESSED.get(encoding, UNKNOWN) if encoding else kind


def detect_content_type(content: bytes, *, name: str = "") -> str:
    """Tell the content type of a document: what its name says, else `text/plain` for text, else what its signature
    says, else `application/octet-stream`."""
    by_name = content_type_of(name) if name else None
    if by_name is not None:
        return by_name
    return TEXT if _is_text(content[:SAMPLE_BYTES]) else _by_signature(content)


def _is_text(sample: bytes) -> bool:
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True  # UTF-16 with its mark
    if b"\0" in sample:
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end within a character.
        return error.reason == "unexpected end of data" and len(sample) == SAMPLE_BYTES
    # PDF has a header of plain characters.
    return not sample.startswith((b"%PDF-", b"{\\rtf", b"%!PS"))


def _by_signature(content: bytes) -> str:
    try:
        found = puremagic.magic_string(content)
    except (puremagic.PureError, ValueError):  # ValueError: it has no bytes
        return UNKNOWN
    best = found[0]
    if not best.mime_type or best.confidence < LEAST_CONFIDENCE:
        return UNKNOWN
    # Every office document is an archive; without a second signature it is only that.
    return ARCHIVE if content.startswith(b"PK") and best.confidence < OFFICE_CONFIDENCE else best.mime_type
