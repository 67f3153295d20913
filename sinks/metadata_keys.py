"""Keys of the metadata store: what is escaped, folded, bounded and sortable, and how a note finds its part.

    note/<note_id>                       the note's record
    source/<type>/<time>/<note_id>       notes of a source, by time
    entity/<type>/<text>/<note_id>       notes that mention an entity
    concept/<text>/<note_id>             notes about a concept
    result/<digest>                      what enrichment made of a text (core/results.py)
    marker                               what the part has committed

A separator never comes out of data, so a prefix that ends with one matches whole parts of a key only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

__all__ = [
    "MARKER_KEY",
    "MAX_TEXT_BYTES",
    "bounded",
    "build_key",
    "concept_key",
    "entity_key",
    "escape",
    "fold",
    "note_key",
    "part_hash",
    "part_name",
    "part_names",
    "prefix_of",
    "result_key",
    "source_key",
    "split_key",
    "time_part",
    "unescape",
]

MARKER_KEY = b"marker"
SEPARATOR = "/"
MAX_TEXT_BYTES = 256
"""A longer text is cut and ends with a digest of the whole, so that two long texts never share a key."""

_DIGEST_DIGITS = 32
# "/" separates, "%" escapes, and control characters would make keys unreadable on a terminal.
_RESERVED = re.compile("[\x00-\x1f\x7f-\x9f%/]")


def escape(text: str) -> str:
    """Percent-encode what must not stand in a key: the separator, the escape itself and control characters."""
    return _RESERVED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), text)


def unescape(text: str) -> str:
    """Read what `escape` wrote."""
    return unquote_to_bytes(text).decode("utf-8", "replace")


def fold(text: str) -> str:
    """Return the form under which a text is looked up: one case, one Unicode form, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def bounded(text: str) -> str:
    """Return `text`, or its beginning and a digest of all of it when it has more than `MAX_TEXT_BYTES`."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return encoded.decode()
    digest = hashlib.sha256(encoded).hexdigest()[:_DIGEST_DIGITS]
    return encoded[: MAX_TEXT_BYTES - _DIGEST_DIGITS - 1].decode("utf-8", "ignore") + "~" + digest


def build_key(*parts: str) -> bytes:
    """Join the parts of a key, each bounded and escaped."""
    return SEPARATOR.join(escape(bounded(part)) for part in parts).encode()


def prefix_of(*parts: str) -> bytes:
    """Return what all keys that begin with these whole parts begin with."""
    return build_key(*parts) + SEPARATOR.encode()


def split_key(key: bytes) -> tuple[str, ...]:
    """Return the parts that `build_key` joined."""
    return tuple(unescape(part) for part in key.decode("utf-8", "replace").split(SEPARATOR))


def time_part(time: datetime) -> str:
    """Write a UTC time in 27 characters that sort like the times themselves."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def note_key(note_id: str) -> bytes:
    """Key of the note's record."""
    return build_key("note", note_id)


def source_key(source_type: str, time: datetime, note_id: str) -> bytes:
    """Key that lists a note under its source, in order of time."""
    return build_key("source", source_type, time_part(time), note_id)


def entity_key(entity_type: str, text: str, note_id: str) -> bytes:
    """Key that lists a note under an entity, whatever the case it was written in."""
    return build_key("entity", entity_type, fold(text), note_id)


def concept_key(text: str, note_id: str) -> bytes:
    """Key that lists a note under a concept, whatever the case it was written in."""
    return build_key("concept", fold(text), note_id)


def result_key(digest: str) -> bytes:
    """Key of the results of a text."""
    return build_key("result", digest)


def part_hash(note_id: str) -> int:
    """Return a number that is the same on every machine at every time; its remainder by the parts picks the part."""
    return int.from_bytes(hashlib.blake2b(note_id.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def part_names(parts: int) -> list[str]:
    """Names of all parts in order; as strings they sort like their numbers."""
    digits = max(2, len(str(parts - 1)))
    return [f"part-{number:0{digits}d}" for number in range(parts)]


def part_name(note_id: str, parts: int) -> str:
    """Name of the part that holds the note."""
    return part_names(parts)[part_hash(note_id) % parts]
