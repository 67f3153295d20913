"""Sitemaps: read in any of their forms, and never more than they may be."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator

import httpx2
import pytest

from core.settings import Settings
from producers.web import sitemaps
from producers.web.client import Client, LeftAlone
from producers.web.sitemaps import MAX_ADDRESSES, is_sitemap, pages_in, read_sitemap
from web_site import Page, Site

SETTINGS = Settings().model_copy(update={"allow_private_addresses": True, "web_pace_seconds": 0.0})
MEBIBYTE = 1024 * 1024
HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
NAMESPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*addresses: str) -> bytes:
    entries = "".join(f"<url><loc> {address} </loc><lastmod>2026-11-23</lastmod></url>" for address in addresses)
    return f"{HEAD}<urlset {NAMESPACE}>{entries}</urlset>".encode()


def index(*addresses: str) -> bytes:
    entries = "".join(f"<sitemap><loc>{address}</loc></sitemap>" for address in addresses)
    return f"{HEAD}<sitemapindex {NAMESPACE}>{entries}</sitemapindex>".encode()


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(SETTINGS) as made:
        yield made


def found(client: Client, site: Site, *paths: str) -> tuple[list[str], dict[str, str]]:
    left: dict[str, str] = {}
    pages = pages_in(
        [httpx2.URL(site.url + path) for path in paths],
        client=client,
        may_visit=lambda _: 0.0,
        max_bytes=MEBIBYTE,
        report=lambda url, reason: left.update({url.removeprefix(site.url): reason.message}),
    )
    return [str(page).removeprefix(site.url) for page in pages], left


def test_a_sitemap_is_read_as_xml_packed_or_plain() -> None:
    content = urlset("https://example.org/a", "https://example.org/b?x=1&amp;y=2")
    expected = (False, ["https://example.org/a", "https://example.org/b?x=1&y=2"])
    assert read_sitemap(content, max_bytes=MEBIBYTE) == expected
    assert read_sitemap(gzip.compress(content), max_bytes=MEBIBYTE) == expected
    plain = b"\xef\xbb\xbfhttps://example.org/a\r\nhttps://example.org/b?x=1&y=2\n"
    assert [address.lstrip("\ufeff") for address in read_sitemap(plain, max_bytes=MEBIBYTE)[1]] == expected[1]
    assert read_sitemap(index("https://example.org/1.xml"), max_bytes=MEBIBYTE) == (
        True,
        ["https://example.org/1.xml"],
    )


def test_addresses_of_images_are_not_pages() -> None:
    image = "http://www.google.com/schemas/sitemap-image/1.1"
    content = (
        f'<urlset {NAMESPACE} xmlns:image="{image}"><url><loc>https://example.org/a</loc>'
        "<image:image><image:loc>https://example.org/a.png</image:loc></image:image></url></urlset>"
    )
    assert read_sitemap(content.encode(), max_bytes=MEBIBYTE)[1] == ["https://example.org/a"]


def test_indexes_are_followed_and_what_can_not_be_read_is_reported(client: Client, site: Site) -> None:
    xml = {"Content-Type": "application/xml"}
    site.pages = {
        "/index.xml": Page(index("/1.xml", "/2.xml.gz", "/none.xml", "/html", "/index.xml"), headers=xml),
        "/1.xml": Page(urlset("/a", "mailto:x", "/b"), headers=xml),
        "/2.xml.gz": Page(gzip.compress(urlset("/c")), headers={"Content-Type": "application/gzip"}),
        "/html": Page(b"<!doctype html><html></html>"),
    }
    pages, left = found(client, site, "/index.xml")
    assert pages == ["/a", "/b", "/c"]
    assert left["/none.xml"] == "answered 404"
    assert left["/html"].startswith("is no sitemap")
    assert len(site.requests) == 5


def test_indexes_of_indexes_end(client: Client, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages = {f"/{number}.xml": Page(index(f"/{number + 1}.xml")) for number in range(20)}
    assert found(client, site, "/0.xml") == ([], {})
    assert len(site.requests) == 3
    monkeypatch.setattr(sitemaps, "MAX_SITEMAPS", 10)
    site.pages = {"/wide.xml": Page(index(*(f"/w{number}.xml" for number in range(50))))}
    found(client, site, "/wide.xml")
    assert len(site.requests) == 3 + 10


LOL = "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1};" * 10 if n else "lol"}">' for n in range(10))


@pytest.mark.parametrize(
    "content",
    [
        f"{HEAD}<!DOCTYPE urlset [{LOL}]><urlset><url><loc>&lol9;</loc></url></urlset>",
        f'{HEAD}<!DOCTYPE urlset [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>&x;</loc></url></urlset>',
        f'{HEAD}<!DOCTYPE urlset SYSTEM "http://127.0.0.1/x.dtd"><urlset></urlset>',
        f"{HEAD}<urlset><url><loc>&unknown;</loc></url></urlset>",
        f"{HEAD}<urlset>",
        "<a>" * 300_000,
        "<rss></rss>",
        '<?xml version="1.0" encoding="utf-7"?><urlset/>',
    ],
)
def test_entities_document_types_and_broken_files_are_refused(content: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(LeftAlone, match="is no sitemap"):
            read_sitemap(content.encode(), max_bytes=16 * MEBIBYTE)
        assert tracemalloc.get_traced_memory()[1] < 32 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_a_sitemap_is_bounded_unpacked_and_in_its_addresses() -> None:
    with pytest.raises(LeftAlone, match="unpacked") as raised:
        read_sitemap(gzip.compress(bytes(8 * MEBIBYTE)), max_bytes=MEBIBYTE)
    assert raised.value.kind == "too_large"
    with pytest.raises(LeftAlone, match="no whole gzip"):
        read_sitemap(b"\x1f\x8bnot at all", max_bytes=MEBIBYTE)
    many = b"<urlset>" + b"<url><loc>/a</loc></url>" * (MAX_ADDRESSES + 10) + b"</urlset>"
    assert len(read_sitemap(many, max_bytes=MEBIBYTE)[1]) == MAX_ADDRESSES
    assert len(read_sitemap(b"a " * (MAX_ADDRESSES + 10), max_bytes=MEBIBYTE)[1]) == MAX_ADDRESSES


def test_a_sitemap_is_told_from_a_site_by_its_name() -> None:
    assert is_sitemap(httpx2.URL("https://example.org/maps/Sitemap.XML?x"))
    assert is_sitemap(httpx2.URL("https://example.org/sitemap.txt.gz"))
    assert not is_sitemap(httpx2.URL("https://example.org/"))
