"""Metadata in the three places that hold it, each with limits of its own. Pure functions.

- The record on the stream: any characters but NUL, at most 64 entries and 16 KiB, what the flow accepts. Values that
  don't fit are left out, longest first.
- The attributes of the object on S3: 2 KiB of printable ASCII in all. Other characters (and blanks, which HTTP and
  request signatures squeeze) are percent-encoded as UTF-8, names are lower-case letters, digits and `-`. They are for
  people and for other tools; the flow does not read them. Values that don't fit are left out, longest first.
- Only when the record had to leave something out: all of it, as a JSON object of its own beside the content, at
  `core.layout.long_metadata_key`. The record names its SHA-256, and the flow reads it with the content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import orjson

from core.layout import MAX_LONG_METADATA_BYTES

__all__ = ["Metadata", "as_texts", "place"]

RECORD_ENTRIES = 64
RECORD_BYTES = 16 * 1024
# S3 counts names and values, without the prefix x-amz-meta-.
ATTRIBUTE_BYTES = 2 * 1024
LONGEST_ATTRIBUTE_NAME = 128

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What goes into the record and into the object's attributes; and, when the record lacks some, all of it as JSON
    with its digest in hexadecimal."""

    record: Mapping[str, str]
    attributes: Mapping[str, str]
    whole: bytes | None

    whole_sha256: str | None


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Make metadata of any JSON values: text stays, null is left out, everything else is the JSON that it is.

    Raises ValueError for what JSON can't hold.
    """
    try:
        return {
            name: value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in values.items()
            if value is not None
        }
    except orjson.JSONEncodeError as error:
        raise ValueError(f"metadata that JSON can't hold: {error}") from error


def place(metadata: Mapping[str, str], *, identity: str, own: Mapping[str, str]) -> Metadata:
    """Divide the `metadata` of the note `identity`; of its attributes those in `own` come first, and always fit.

    Raises ValueError for more than 256 KiB.
    """
    clean = {_clean(name): _clean(value) for name, value in metadata.items()}
    record = _fitting(clean, entries=RECORD_ENTRIES, size_bytes=RECORD_BYTES)
    whole = None if len(record) == len(clean) else orjson.dumps(clean, option=orjson.OPT_SORT_KEYS)
    if whole is not None and len(whole) > MAX_LONG_METADATA_BYTES:
        raise ValueError(
            f'the metadata of "{identity}" has {len(whole):,} bytes, {MAX_LONG_METADATA_BYTES:,} are taken: '
            "put long texts into the document"
        )
    attributes = {name: _encoded(value) for name, value in own.items()}
    # A name in other letters may become that of another.
    rest = {_attribute_name(name): _encoded(value) for name, value in clean.items()}
    left = ATTRIBUTE_BYTES - _size(attributes)
    others = {name: value for name, value in rest.items() if name and name not in attributes}
    attributes |= _fitting(others, entries=len(others), size_bytes=left)
    return Metadata(record, attributes, whole, None if whole is None else hashlib.sha256(whole).hexdigest())


def _fitting(values: Mapping[str, str], *, entries: int, size_bytes: int) -> dict[str, str]:
    """Return the entries that fit, in order: the longest are left out, of equal ones the later."""
    sizes = {name: len(name.encode()) + len(value.encode()) for name, value in values.items()}
    chosen: set[str] = set()
    for name in sorted(sizes, key=sizes.__getitem__):
        if len(chosen) == entries or sizes[name] > size_bytes:
            break
        chosen.add(name)
        size_bytes -= sizes[name]
    return {name: value for name, value in values.items() if name in chosen}


def _size(values: Mapping[str, str]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in values.items())


def _clean(text: str) -> str:
    # Half a surrogate pair is no character, and no store takes NUL.
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _attribute_name(name: str) -> str:
    return _NOT_IN_A_NAME.sub("-", name.lower()).strip("-")[:LONGEST_ATTRIBUTE_NAME]


def _encoded(value: str) -> str:
    return quote(value, safe=_PRINTABLE)
