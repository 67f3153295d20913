"""What robots.txt says is done."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx2
import pytest

from core.settings import Settings
from producers.web.client import Client, LeftAlone
from producers.web.robots import Robots
from web_site import Page, Site, redirect

SETTINGS = Settings().model_copy(update={"allow_private_addresses": True, "web_pace_seconds": 0.0})


@pytest.fixture
def robots() -> Iterator[Robots]:
    with Client(SETTINGS, pause=lambda _: None) as client:
        yield Robots(client, SETTINGS)


def text(content: str | bytes) -> Page:
    return Page(content if isinstance(content, bytes) else content.encode(), headers={"Content-Type": "text/plain"})


def allowed(robots: Robots, site: Site, path: str) -> bool:
    try:
        robots.check(httpx2.URL(site.url + path))
    except LeftAlone as left:
        return left.kind != "robots"
    return True


def test_the_group_with_our_name_goes_before_the_one_for_all(robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = text(
        "User-agent: *\nDisallow: /\n\nUser-agent: other\nuser-agent: PKM-Lakehouse # us\nDisallow: /private\n"
        "Allow: /private/open$\nSitemap: /map.xml\n"
    )
    assert allowed(robots, site, "/")
    assert not allowed(robots, site, "/private/x")
    assert allowed(robots, site, "/private/open")
    assert robots.sitemaps(httpx2.URL(site.url)) == ["/map.xml"]
    assert len(site.requests) == 1


def test_a_group_for_others_is_not_ours(robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = text(
        "User-agent: pkm\nUser-agent: lakehouse\nDisallow: /\n\nUser-agent: *\nDisallow: /b\n"
    )
    assert allowed(robots, site, "/a")
    assert not allowed(robots, site, "/b")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_site_without_rules_allows_everything(status: int, robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = Page(b"", status)
    assert allowed(robots, site, "/a")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_site_whose_rules_can_not_be_read_allows_nothing(status: int, robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = Page(b"", status)
    assert not allowed(robots, site, "/a")


def test_a_site_that_can_not_be_reached_is_a_failure_and_asked_once(robots: Robots) -> None:
    for _ in range(2):
        with pytest.raises(LeftAlone, match="can't be reached") as raised:
            robots.check(httpx2.URL("http://127.0.0.1:1/a"))
        assert raised.value.kind == "failed"


def test_rules_are_followed_to_where_they_moved(robots: Robots, site: Site) -> None:
    site.pages |= {"/robots.txt": redirect("/rules"), "/rules": text("User-agent: *\nDisallow: /b")}
    assert not allowed(robots, site, "/b")


def test_the_slowest_pace_that_is_asked_for_is_kept(robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = text("User-agent: *\nCrawl-delay: 2.5\nRequest-rate: 1/10\n")
    assert robots.check(httpx2.URL(site.url)) == 10.0


@pytest.mark.parametrize("delay", ["61", "1e308"])
def test_a_pace_that_is_too_slow_is_respected_by_staying_away(delay: str, robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = text(f"User-agent: *\nCrawl-delay: {delay}\n")
    assert not allowed(robots, site, "/")


@pytest.mark.parametrize("delay", ["nan", "inf", "-1", "soon", ""])
def test_a_pace_that_is_none_is_not_kept(delay: str, robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = text(f"User-agent: *\nCrawl-delay: {delay}\n")
    assert robots.check(httpx2.URL(site.url)) == 0.0


@pytest.mark.parametrize(
    "rules",
    [
        "User-agent: *\nDisallow: /" + "*a" * 250_000,
        "User-agent: *\nDisallow: /b\n"
        + "".join(f"User-agent: a{n}\n" for n in range(25_000))
        + "Disallow: /\n" * 30_000,
        "User-agent: *\nDisallow: /b\n" + "User-agent: a\n" * 40_000,
        "\u0000\ud7ff" * 100_000,
        "User-agent: *\nDisallow: /b\n#" + "x" * 2_000_000,
    ],
)
def test_rules_that_are_made_to_be_slow_are_not(rules: str, robots: Robots, site: Site) -> None:
    site.pages["/robots.txt"] = text(rules)
    begun = time.process_time()
    robots.check(httpx2.URL(f"{site.url}/{'a' * 1000}"))
    assert time.process_time() - begun < 3
