"""What producers hand over: versions of notes, with their bytes or as objects that lie on S3 already."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from core.layout import RAW
from core.records import event_identity

__all__ = ["Deletion", "LeftAlone", "SourceItem", "StoredObject", "Summary", "check_source_type", "raw_key"]

LeftAlone = Callable[[str, str], None]
"""Hears what a producer leaves alone (a path, an address), and why."""

SOURCE_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One version of one note as a source has it.

    `identity` is the source's own name of the note (a path, an address), the same for all its versions. Without a
    `content_type` it is detected. `metadata` may have any length up to 256 KiB (`producers.metadata`). A
    `source_type` is at most 64 lower-case letters, digits, `_` and `-`, since it is part of keys; any other raises
    ValueError.
    """

    source_type: str
    identity: str
    content: bytes
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_source_type(self.source_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One version of one note whose bytes are complete at `s3_key` in the product's bucket.

    `event_id` names the version, as `core.records.event_identity` and `event_identity_of_digest` make it. Without a
    `content_sha256` (hexadecimal) the flow takes whatever lies there when it reads. Raises ValueError for a source
    type that can't be part of a key.
    """

    source_type: str
    identity: str
    event_id: str
    s3_key: str
    content_size: int
    content_sha256: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_source_type(self.source_type)


@dataclass(frozen=True, slots=True)
class Deletion:
    """Says that a note was deleted at an aware time.

    The event id holds the time, since a deletion has no content: a note that was deleted, came back and is deleted
    again needs two events. Raises ValueError for a source type that can't be part of a key.
    """

    source_type: str
    identity: str
    at: datetime

    def __post_init__(self) -> None:
        check_source_type(self.source_type)

    @property
    def event_id(self) -> str:
        """Name of the event: the same whenever the same deletion is announced."""
        # No content can begin like this by accident: a NUL byte is in no text document.
        content = b"\0deleted:" + self.at.astimezone(UTC).isoformat().encode()
        return event_identity(self.source_type, self.identity, content)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a producer did: items announced, objects uploaded or found in place, size and kinds of the content; and
    how many things it left alone, which it says by itself."""

    announced: int = 0
    uploaded: int = 0
    already_there: int = 0
    content_bytes: int = 0
    by_content_type: Mapping[str, int] = field(default_factory=dict)
    left_alone: int = 0

    def __add__(self, other: Summary) -> Summary:
        """What both together did."""
        types = Counter(self.by_content_type) + Counter(other.by_content_type)
        return Summary(
            self.announced + other.announced,
            self.uploaded + other.uploaded,
            self.already_there + other.already_there,
            self.content_bytes + other.content_bytes,
            dict(sorted(types.items())),
            self.left_alone + other.left_alone,
        )


def raw_key(source_type: str, event_id: str) -> str:
    """Name the object of an event's raw bytes."""
    return f"{RAW}{source_type}/{event_id}"


def check_source_type(source_type: str) -> None:
    """Raise ValueError for a source type that can't be part of a key."""
    if not SOURCE_TYPE.fullmatch(source_type):
        raise ValueError(f'source type "{source_type}" must be lower-case letters, digits, "_" or "-", at most 64')
