"""What every reader gives back, how it refuses, and the limits that all readers keep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Extracted", "Refusal", "Refused", "clean", "headings", "links_in", "one_line", "usable_links"]

MAX_LINKS = 1_000
MAX_LINK_CHARACTERS = 2_048
MAX_HEADERS = 1_000
MAX_TITLE_CHARACTERS = 300

_LINE_ENDS = re.compile(r"\r\n?")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ADDRESS = re.compile(r"""\bhttps?://[^\s<>"'`|\\^{}\[\]()]{1,2048}""")
_LINK_SCHEMES = frozenset({"", "http", "https", "mailto"})


@dataclass(frozen=True, slots=True)
class Extracted:
    """A document as its reader sees it.

    `text` has \\n line ends, no NUL and no surrogates; `title` is empty when the document does not name itself;
    `language` is an ISO 639-1 code, or empty when the text is too short to tell.
    """

    text: str
    title: str = ""
    frontmatter_json: str = "{}"
    links: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    language: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a document can't be read: a short class-like name, and a sentence without the document's content."""

    error: str
    message: str


class Refusal(Exception):  # noqa: N818 - not a fault: it carries a document's verdict out of nested readers
    """Unwinds a reader; never leaves `operators.formats`, where it turns into `Refused`."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(error, message)
        self.refused = Refused(error, message)


def clean(text: str) -> str:
    r"""Return `text` with \n line ends and without characters that no table can store."""
    return _UNSTORABLE.sub("", _LINE_ENDS.sub("\n", text))


def one_line(text: str, *, limit: int = MAX_TITLE_CHARACTERS) -> str:
    """Return `text` on one line with single spaces, at most `limit` characters."""
    # Cut before splitting, so that a title of megabytes costs nothing.
    return " ".join(clean(text[: limit * 8]).split())[:limit].rstrip()


def headings(candidates: Iterable[str]) -> tuple[str, ...]:
    """Return the headings that are not empty, one line each, in order, at most 1,000."""
    found: list[str] = []
    for candidate in candidates:
        heading = one_line(candidate)
        if heading:
            found.append(heading)
            if len(found) == MAX_HEADERS:
                break
    return tuple(found)


def links_in(text: str) -> list[str]:
    """Return the http and https addresses that are written out in `text`."""
    return [address.rstrip(".,;:!?*_~") for address in _ADDRESS.findall(text)]


def usable_links(candidates: Iterable[str | None]) -> tuple[str, ...]:
    """Return web, mail and relative links in order, each once: at most 1,000 of at most 2,048 characters."""
    found: dict[str, None] = {}
    for candidate in candidates:
        link = clean((candidate or "").strip())
        # A fragment alone points into the document itself.
        if not link or link.startswith("#") or len(link) > MAX_LINK_CHARACTERS:
            continue
        try:
            scheme = urlsplit(link).scheme.lower()
        except ValueError:
            continue
        if scheme in _LINK_SCHEMES:
            found[link] = None
            if len(found) == MAX_LINKS:
                break
    return tuple(found)
