"""What is remembered of each page from run to run, in the cursor of the start address that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

__all__ = ["KnownPage", "known_pages", "remembered", "validators"]

LONGEST_VALIDATOR = 256


@dataclass(frozen=True, slots=True)
class KnownPage:
    """A page that was announced: the digest of its content, how to ask whether it changed, how far from the start.

    `url` is its address where that is written differently from its identity; `followed` whether what it links to is
    remembered too; `missing_since` when the server first said that it is not there.
    """

    sha256: str
    depth: int
    etag: str | None = None
    last_modified: str | None = None
    url: str | None = None
    followed: bool = False
    missing_since: datetime | None = None

    def conditions(self) -> dict[str, str]:
        """Return request headers that ask for the page only if it is another than this."""
        headers = {}
        if self.etag:
            headers["If-None-Match"] = self.etag
        if self.last_modified:
            headers["If-Modified-Since"] = self.last_modified
        return headers


def validators(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the entity tag and the time of the last change that a server gave; None for what can't be sent back."""
    return _usable(headers.get("ETag")), _usable(headers.get("Last-Modified"))


def known_pages(value: Mapping[str, Any]) -> dict[str, KnownPage]:
    """Read the pages in a cursor's value, by identity."""
    pages = {}
    for identity, fields in value.get("pages", {}).items():
        since = fields.get("missing_since")
        pages[identity] = KnownPage(**{**fields, "missing_since": datetime.fromisoformat(since) if since else None})
    return pages


def remembered(pages: Mapping[str, KnownPage], others: Mapping[str, int]) -> dict[str, Any]:
    """Make a cursor's value of pages, and of the distance of addresses that gave no page but may give one later."""
    return {
        "pages": {
            identity: {
                name: value.isoformat() if isinstance(value, datetime) else value
                for name, value in asdict(page).items()
                if value is not None and value is not False
            }
            for identity, page in pages.items()
        },
        "others": dict(others),
    }


def _usable(value: str | None) -> str | None:
    return value if value and value.isascii() and value.isprintable() and len(value) <= LONGEST_VALIDATOR else None
