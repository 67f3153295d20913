"""The pages that a site names itself: sitemaps as XML, as an index of others, or as plain text, gzip or not."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from xml.etree.ElementTree import ParseError

import httpx2
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from producers.web.client import Client, LeftAlone
from producers.web.urls import link_target

__all__ = ["is_sitemap", "pages_in", "read_sitemap"]

MAX_SITEMAPS = 100
MAX_NESTED = 2
MAX_DEPTH = 32
# The most that the protocol allows in one file.
MAX_ADDRESSES = 50_000
_WORD = re.compile(r"\S{1,2048}")
_SUFFIXES = (".xml", ".xml.gz", ".txt", ".txt.gz")
_GZIP = b"\x1f\x8b"


def is_sitemap(url: httpx2.URL) -> bool:
    """Tell whether an address looks like a sitemap's, rather than like that of a site."""
    return url.path.lower().endswith(_SUFFIXES)


def pages_in(
    sitemaps: list[httpx2.URL],
    *,
    client: Client,
    may_visit: Callable[[httpx2.URL], float],
    max_bytes: int,
    report: Callable[[str, LeftAlone], None],
) -> Iterator[httpx2.URL]:
    """Give the pages that the `sitemaps` and the indexes among them name, in order; at most 100 files are read.

    What can't be read is given to `report` with its address, and the others are read.
    """
    waiting = [(sitemap, 0) for sitemap in sitemaps]
    read: set[str] = set()
    while waiting and len(read) < MAX_SITEMAPS:
        sitemap, depth = waiting.pop(0)
        if str(sitemap) in read:
            continue
        read.add(str(sitemap))
        try:
            answer = client.get(sitemap, max_bytes=max_bytes, may_visit=may_visit)
            if answer.status != 200:
                raise LeftAlone("failed", f"answered {answer.status}")
            is_index, addresses = read_sitemap(answer.content, max_bytes=max_bytes)
        except LeftAlone as left:
            report(str(sitemap), left)
            continue
        for address in addresses:
            target = link_target(str(answer.url), address)
            if target is None:
                continue
            if not is_index:
                yield target
            elif depth < MAX_NESTED:
                waiting.append((target, depth + 1))


def read_sitemap(content: bytes, *, max_bytes: int) -> tuple[bool, list[str]]:
    """Return whether a sitemap is an index of others, and the addresses in it.

    Raises LeftAlone when it is larger than `max_bytes` unpacked, no sitemap, or has entities or a document type,
    which can blow up while they are read.
    """
    if content.startswith(_GZIP):
        content = _unpacked(content, max_bytes)
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"<":
        words = _WORD.finditer(content.decode("utf-8", errors="replace"))
        return False, [word[0] for word in islice(words, MAX_ADDRESSES)]
    found = _Addresses()
    parser = XMLParser(target=found, forbid_dtd=True)
    try:
        parser.feed(content)
        parser.close()
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise LeftAlone("failed", f"is no sitemap: {type(error).__name__}") from error
    if found.root not in ("urlset", "sitemapindex"):
        raise LeftAlone("failed", "is no sitemap: it has neither urlset nor sitemapindex")
    return found.root == "sitemapindex", found.addresses


class _Addresses:
    """What the parser tells; no tree is built, which could be many times the size of the file."""

    def __init__(self) -> None:
        self.root = ""
        self.addresses: list[str] = []
        self._text: list[str] | None = None
        self._depth = 0

    def start(self, tag: str, _: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("nested too deep")  # the parser remembers every open element
        name = tag.rpartition("}")[2]
        self.root = self.root or name
        # Images and videos have a `loc` in a namespace of their own.
        if name == "loc" and "sitemap-" not in tag and len(self.addresses) < MAX_ADDRESSES:
            self._text = []

    def data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def end(self, _: str) -> None:
        self._depth -= 1
        if self._text is not None:
            self.addresses.append("".join(self._text).strip())
            self._text = None


def _unpacked(content: bytes, max_bytes: int) -> bytes:
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        unpacked = decoder.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise LeftAlone("failed", "is no whole gzip file") from error
    if len(unpacked) > max_bytes:
        raise LeftAlone("too_large", f"is larger than {max_bytes:,} bytes (PKM_MAX_OBJECT_BYTES) unpacked")
    return unpacked
