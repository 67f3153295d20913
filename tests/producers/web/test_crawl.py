"""From a web site to the stream: what is new, what is gone, what is left alone, and again."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import obstore
import pytest
import trustme

from core import aws
from core.errors import ForbiddenAddressError
from core.records import note_identity
from core.settings import Settings
from internet import PUBLIC, public_network
from producers.addresses import guarded_client
from producers.announce import announce_deletions
from producers.web import publish
from producers.web.client import Client
from producers.web.crawl import WebSummary, crawl
from web_site import Page, Site, bomb, dripping, endless, html, redirect, web_site

Records = Callable[[], list[dict[str, Any]]]


def objects(settings: Settings) -> dict[str, str]:
    found = aws.s3_client(settings).list_objects_v2(Bucket=settings.bucket, Prefix="bronze/").get("Contents", [])
    return {entry["Key"]: entry["ETag"] for entry in found}


def ingested(settings: Settings, *urls: str, **options: Any) -> tuple[WebSummary, dict[str, str]]:
    left: dict[str, str] = {}
    return crawl(urls, settings=settings, on_left_alone=left.__setitem__, **options), left


def counts(summary: WebSummary) -> dict[str, Any]:
    """The figures that are not nought, without sizes and uploads."""
    other = ("uploaded", "already_there", "content_bytes", "by_content_type")
    return {name: value for name, value in asdict(summary).items() if value and name not in other}


def urls_of(found: list[dict[str, Any]], site: Site) -> list[str]:
    return [record["metadata"]["url"].removeprefix(site.url) for record in found]


def small_site(site: Site) -> None:
    site.pages |= {
        "/": html("home", "/a", "b?y=2&x=1", "/a#part", "/old", "https://elsewhere.example/", tagged=True),
        "/a": html("page a", "/", "/deep"),
        "/b": html("page b", "/b?x=1&y=2", tagged=True),
        "/old": redirect("/a", 301),
        "/deep": html("deep", "/deeper"),
        "/deeper": html("deeper"),
    }


def test_a_page_becomes_an_object_and_a_record(open_settings: Settings, site: Site, records: Records) -> None:
    site.pages["/note"] = Page(
        b"# A note\n",
        headers={"Content-Type": "Text/Markdown; Charset=UTF-8", "Last-Modified": "Mon, 23 Nov 2026 08:00:00 GMT"},
    )
    summary, _ = ingested(open_settings, f"{site.url}/note#part")
    (record,) = records()
    identity = f"{site.url}/note"
    assert record["source_type"] == "web"
    assert record["note_id"] == note_identity("web", identity)
    assert record["content_type"] == "text/markdown"
    assert record["metadata"] == {"url": identity, "last_modified": "Mon, 23 Nov 2026 08:00:00 GMT"}
    found = obstore.get(aws.object_store(open_settings), record["s3_key"])
    assert bytes(found.bytes()) == b"# A note\n"
    assert (summary.announced, summary.uploaded, summary.content_bytes) == (1, 1, 9)
    assert summary.by_content_type == {"text/markdown": 1}


def test_links_of_the_site_are_followed_as_far_as_asked_each_page_once(
    open_settings: Settings, site: Site, records: Records
) -> None:
    small_site(site)
    assert counts(ingested(open_settings, site.url, depth=1)[0]) == {"announced": 3}
    assert urls_of(records(), site) == ["/", "/a", "/b?x=1&y=2"]
    assert sorted(site.asked) == ["/", "/a", "/a", "/b?y=2&x=1", "/old"]
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"announced": 1, "unchanged": 3}
    assert urls_of(records(), site)[3:] == ["/deep"]


def test_a_second_run_makes_no_new_object_and_no_new_record(
    open_settings: Settings, site: Site, records: Records
) -> None:
    small_site(site)
    ingested(open_settings, site.url, depth=3)
    before = (records(), objects(open_settings))
    cursors = aws.s3_client(open_settings).list_objects_v2(Bucket=open_settings.bucket, Prefix="producers/")[
        "Contents"
    ]
    site.requests.clear()
    summary, _ = ingested(open_settings, site.url, depth=3)
    assert counts(summary) == {"unchanged": 5}
    assert (records(), objects(open_settings)) == before
    again = aws.s3_client(open_settings).list_objects_v2(Bucket=open_settings.bucket, Prefix="producers/")["Contents"]
    assert again == cursors
    # What has an entity tag is not even sent again.
    assert {path for path, headers in site.requests if "If-None-Match" in headers} == {"/", "/b?y=2&x=1"}


def test_a_run_from_the_start_announces_everything_again_and_stores_nothing_twice(
    open_settings: Settings, site: Site, records: Records
) -> None:
    small_site(site)
    ingested(open_settings, site.url, depth=1)
    summary, _ = ingested(open_settings, site.url, depth=1, from_start=True)
    assert (summary.announced, summary.uploaded, summary.already_there) == (3, 0, 3)
    assert len({record["event_id"] for record in records()}) == 3
    assert counts(ingested(open_settings, site.url, depth=1)[0]) == {"unchanged": 3}


def test_what_had_no_turn_or_failed_is_found_later_although_the_page_that_leads_there_is_the_same(
    open_settings: Settings, site: Site, records: Records
) -> None:
    site.pages |= {
        "/": html("home", "/a", "/b", "/broken", "/people", "/moving", tagged=True),
        **{path: html(path, f"{path}/deep", tagged=True) for path in ("/a", "/b")},
        **{f"{path}/deep": html(path, tagged=True) for path in ("/a", "/b")},
        "/broken": Page(b"", 500),
        "/people": html("for people"),
        "/moving": redirect("/a"),
        "/moved": html("moved"),
        "/robots.txt": Page(b"User-agent: *\nDisallow: /people"),
    }
    assert counts(ingested(open_settings, site.url, depth=1, max_pages=2)[0]) == {"announced": 2, "over_limit": 4}
    assert counts(ingested(open_settings, site.url, depth=1)[0]) == {
        "announced": 1,
        "unchanged": 2,
        "failed": 1,
        "robots": 1,
    }
    site.pages |= {"/broken": html("mended"), "/robots.txt": Page(b"", 404), "/moving": redirect("/moved")}
    assert counts(ingested(open_settings, site.url, depth=1)[0]) == {"announced": 3, "unchanged": 3}
    # A page that was not asked where it leads to is asked again.
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"announced": 2, "unchanged": 6}
    site.requests.clear()
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"unchanged": 8}
    assert all("If-None-Match" in headers for path, headers in site.requests if site.pages.get(path, Page()).tagged)
    assert len(records()) == 8


def test_a_page_that_changed_is_a_new_version_of_the_same_note_and_its_new_links_are_followed(
    open_settings: Settings, site: Site, records: Records
) -> None:
    small_site(site)
    ingested(open_settings, site.url, depth=2)
    first = records()
    site.pages["/a"] = html("page a, second edition", "/new")
    site.pages["/new"] = html("new")
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"announced": 2, "unchanged": 3}
    later = records()[len(first) :]
    assert urls_of(later, site) == ["/a", "/new"]
    old = next(record for record in first if record["note_id"] == later[0]["note_id"])
    assert old["event_id"] != later[0]["event_id"]


def test_a_page_is_deleted_when_it_is_gone_or_missing_in_two_runs(
    open_settings: Settings, site: Site, records: Records
) -> None:
    small_site(site)
    site.pages["/"] = html("home", "/a", "/b?y=2&x=1", tagged=True)
    ingested(open_settings, site.url, depth=2)
    before = len(records())
    kept = dict(site.pages)
    site.pages["/a"] = Page(b"", 410)
    del site.pages["/deep"], site.pages["/b"]
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"unchanged": 1, "deleted": 1, "missing": 2}
    (gone,) = records()[before:]
    assert (gone["note_id"], gone["deleted"]) == (note_identity("web", f"{site.url}/a"), True)

    site.pages["/b"] = kept["/b"]  # it was missing for a while only
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"unchanged": 2, "deleted": 1}
    assert records()[-1]["note_id"] == note_identity("web", f"{site.url}/deep")

    del site.pages["/b"]
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"unchanged": 1, "missing": 1}
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"unchanged": 1, "deleted": 1}
    assert counts(ingested(open_settings, site.url, depth=2)[0]) == {"unchanged": 1}
    assert len(records()) == before + 3


def test_a_deletion_that_is_repeated_is_the_same_event(
    open_settings: Settings, site: Site, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pages["/"] = html("here")
    ingested(open_settings, site.url)
    site.pages["/"] = Page(b"", 410)
    day = datetime(2026, 11, 23, tzinfo=UTC)

    class StoppedError(Exception):
        pass

    def stopping(*arguments: Any, **options: Any) -> None:
        announce_deletions(*arguments, **options)
        raise StoppedError

    # What a process has done that is stopped between the stream and the cursor.
    with monkeypatch.context() as patch:
        patch.setattr(publish, "announce_deletions", stopping)
        with pytest.raises(StoppedError):
            ingested(open_settings, site.url, now=lambda: day)
    assert counts(ingested(open_settings, site.url, now=lambda: day + timedelta(days=1))[0]) == {"deleted": 1}
    _, first, second = records()
    assert first["event_id"] == second["event_id"]


def test_a_page_that_moved_for_good_is_deleted_after_two_runs_and_found_at_its_new_place(
    open_settings: Settings, site: Site, records: Records
) -> None:
    site.pages |= {"/": html("home", "/a"), "/a": html("page a")}
    ingested(open_settings, site.url, depth=1)
    site.pages |= {"/": html("home!", "/b"), "/a": redirect("/b", 308), "/b": html("page a")}
    assert counts(ingested(open_settings, site.url, depth=1)[0]) == {"announced": 2, "missing": 1}
    assert counts(ingested(open_settings, site.url, depth=1)[0]) == {"unchanged": 2, "deleted": 1}
    assert records()[-1]["note_id"] == note_identity("web", f"{site.url}/a")
    # For a while is not for good.
    site.pages["/b"] = redirect("/login", 302)
    site.pages["/login"] = html("who are you?")
    assert "deleted" not in counts(ingested(open_settings, site.url, depth=1)[0])
    assert "missing" not in counts(ingested(open_settings, site.url, depth=1)[0])


def test_what_is_left_alone_is_counted_with_its_reason_and_stops_nothing(
    open_settings: Settings, site: Site, records: Records
) -> None:
    small = open_settings.model_copy(update={"max_object_bytes": 1024**2, "web_page_seconds": 0.5})
    pages: dict[str, Any] = {
        "/robots": html("for people"),
        "/endless": endless,
        "/bomb": bomb(8 * 1024**2),
        "/slow": dripping(b"x"),
        "/loop": redirect("/loop2"),
        "/loop2": redirect("/loop"),
        "/away": redirect("https://elsewhere.example/"),
        "/image": Page(b"\x89PNG", headers={"Content-Type": "image/png"}),
        "/pdf": Page(b"%PDF-1.7", headers={"Content-Type": "application/octet-stream"}),
        "/zero": Page(b"a\0b", headers={"Content-Type": "text/plain"}),
        "/empty": Page(b""),
        "/none": Page(b"", 404),
        "/broken": Page(b"", 500),
        "/local": redirect(f"file://{site.url}/x"),
        "/fine": html("fine"),
    }
    site.pages |= pages | {"/": html("home", *pages), "/robots.txt": Page(b"User-agent: *\nDisallow: /robots")}
    summary, left = ingested(small, site.url, depth=1)
    assert counts(summary) == {
        "announced": 2,
        "robots": 1,
        "too_large": 2,
        "failed": 6,
        "off_site": 1,
        "other_type": 3,
        "refused": 1,
    }
    assert urls_of(records(), site) == ["/", "/fine"]
    reasons = {url.removeprefix(site.url): reason for url, reason in left.items()}
    assert reasons["/robots"] == "is not for robots, says its site's robots.txt"
    assert reasons["/none"] == "answered 404"
    assert reasons["/empty"] == "is empty"
    assert reasons["/image"] == 'is "image/png", which is not read'
    assert reasons["/slow"] == "takes longer than 0.5 seconds"
    assert set(reasons) == set(pages) - {"/fine"}
    assert "/robots" not in site.asked


def test_a_run_visits_as_many_pages_as_it_may_and_the_same_the_next_time(
    open_settings: Settings, site: Site, records: Records
) -> None:
    # A calendar: every page leads to the next.
    site.pages |= {f"/{day}": html(str(day), f"/{day + 1}") for day in range(100)}
    heard: list[int] = []
    summary, _ = ingested(open_settings, f"{site.url}/0", depth=100, max_pages=5, on_progress=heard.append)
    assert counts(summary) == {"announced": 5, "over_limit": 1}
    assert heard == [1] * 5
    assert counts(ingested(open_settings, f"{site.url}/0", depth=100, max_pages=5)[0])["unchanged"] == 5
    assert len(records()) == 5


def test_a_start_that_redirects_to_another_site_is_followed_there(
    open_settings: Settings, site: Site, records: Records
) -> None:
    with web_site() as other:
        site.pages["/"] = redirect(f"{other.url}/home")
        other.pages |= {"/home": html("home", "/a", f"{site.url}/b"), "/a": html("a", f"{site.url}/c")}
        site.pages |= {"/b": html("b"), "/c": html("c")}
        assert counts(ingested(open_settings, site.url, depth=2)[0])["announced"] == 4
        assert records()[0]["metadata"]["url"] == f"{other.url}/home"


def test_start_addresses_that_can_not_be_read_are_told_and_the_others_are_read(
    open_settings: Settings, site: Site
) -> None:
    site.pages["/a"] = html("a")
    closed = "http://127.0.0.1:1/"
    summary, _ = ingested(open_settings, closed, f"{site.url}/none", f"{site.url}/a", f"{site.url}/a?utm_id=1")
    assert counts(summary) == {
        "announced": 1,
        "failed": 2,
        "failed_starts": {
            closed: "can't be reached: [Errno 111] Connection refused",
            f"{site.url}/none": "answered 404",
        },
    }


def test_an_address_that_is_none_is_refused_before_anything_is_read(open_settings: Settings, site: Site) -> None:
    for url in ("example.org/a", "file:///etc/passwd", "http://ann:secret@example.org/"):
        with pytest.raises(ForbiddenAddressError):
            ingested(open_settings, site.url, url)
    assert site.requests == []


def test_sitemaps_name_the_pages_of_a_site(open_settings: Settings, site: Site, records: Records) -> None:
    entries = "".join(f"<url><loc>{url}</loc></url>" for url in ("/a", "/b", "https://elsewhere.example/", "/none"))
    sitemap = Page(f"<urlset>{entries}</urlset>".encode())
    site.pages |= {"/a": html("a", "/c"), "/b": html("b"), "/c": html("c"), "/maps/1.xml": sitemap}
    # The default place is empty, robots.txt names none.
    summary, left = ingested(open_settings, site.url, sitemap=True)
    assert summary.failed_starts == {site.url: "no page of this site is in its sitemaps"}
    assert left[f"{site.url}/sitemap.xml"] == "answered 404"

    site.pages["/sitemap.xml"] = sitemap
    assert counts(ingested(open_settings, site.url, sitemap=True)[0]) == {"announced": 2, "off_site": 1, "failed": 1}
    del site.pages["/sitemap.xml"]
    site.pages["/robots.txt"] = Page(b"Sitemap: /maps/1.xml\nUser-agent: *\nDisallow: /b\n")
    assert counts(ingested(open_settings, site.url, sitemap=True)[0])["robots"] == 1
    # Pages in it may lead on; an address of its own is a source of its own.
    assert counts(ingested(open_settings, f"{site.url}/maps/1.xml", sitemap=True, depth=1)[0])["announced"] == 2
    assert sorted(set(urls_of(records(), site))) == ["/a", "/b", "/c"]
    broken = f"{site.url}/none.xml"
    assert ingested(open_settings, broken, sitemap=True)[0].failed_starts == {broken: "answered 404"}


def test_a_site_that_answers_for_private_addresses_gets_nothing_from_them(
    open_settings: Settings, site: Site, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = open_settings.model_copy(update={"allow_private_addresses": False})
    site.pages |= {
        "/": html("home", "/metadata", "/inside", "http://127.0.0.1/", "http://rebound.example/"),
        "/metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "/inside": redirect("http://www.public.example:8080/"),
    }
    with public_network(monkeypatch) as internet:
        internet.routes[(PUBLIC, 80)] = site.port
        internet.names |= {"public.example": [[PUBLIC]], "meta.example": [["169.254.169.254"]]}
        http = guarded_client(guarded, resolve=internet.resolve, tls=httpx2.create_ssl_context())
        client = Client(guarded, http=http)
        summary, left = ingested(guarded, "http://public.example/", "http://meta.example/", depth=1, client=client)
        assert set(internet.connected) == {(PUBLIC, 80)}
    assert counts(summary)["announced"] == 1
    assert counts(summary)["off_site"] == 2
    assert list(summary.failed_starts) == ["http://meta.example/"]
    assert "169.254.169.254, which is not a public address" in left["http://meta.example/"]
    assert len(records()) == 1


def test_a_start_that_redirects_to_a_private_address_is_refused(
    open_settings: Settings, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = open_settings.model_copy(update={"allow_private_addresses": False})
    site.pages["/"] = redirect("http://[::ffff:169.254.169.254]/latest/meta-data/")
    with public_network(monkeypatch) as internet:
        internet.routes[(PUBLIC, 80)] = site.port
        internet.names["public.example"] = [[PUBLIC]]
        http = guarded_client(guarded, resolve=internet.resolve, tls=httpx2.create_ssl_context())
        summary, _ = ingested(guarded, "http://public.example/", client=Client(guarded, http=http))
        assert set(internet.connected) == {(PUBLIC, 80)}
    assert counts(summary)["refused"] == 1
    assert "not a public address" in summary.failed_starts["http://public.example/"]


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "other name", "none"])
def test_a_page_over_broken_tls_is_not_read(fault: str, open_settings: Settings, records: Records) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    name = "127.0.0.2" if fault == "other name" else "127.0.0.1"
    ends = datetime.now(UTC) - timedelta(days=1) if fault == "expired" else None
    authority.issue_cert(name, not_after=ends).configure_cert(context)
    trusting = ssl.create_default_context()
    if fault != "unknown authority":
        authority.configure_trust(trusting)
    with web_site(context) as site:
        site.pages["/"] = html("secret")
        url = site.url.replace("http:", "https:")
        client = Client(open_settings, http=guarded_client(open_settings, tls=trusting))
        summary, left = ingested(open_settings, url, client=client)
    if fault == "none":
        assert counts(summary) == {"announced": 1}
    else:
        assert "certificate verify failed" in left[url]
        assert records() == []
