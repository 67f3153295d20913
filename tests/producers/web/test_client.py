"""One GET: bounded in redirects, size and time, whatever a server does."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from core.settings import Settings
from internet import public_network
from producers.web.client import Client, LeftAlone
from web_site import Handler, Page, Site, bomb, dripping, endless, html, redirect

SETTINGS = Settings().model_copy(
    update={"allow_private_addresses": True, "web_pace_seconds": 0.0, "web_page_seconds": 5.0}
)
MEBIBYTE = 1024 * 1024


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(SETTINGS) as made:
        yield made


def left_alone(client: Client, site: Site, path: str) -> tuple[str, str]:
    with pytest.raises(LeftAlone) as raised:
        client.get(httpx2.URL(site.url + path), max_bytes=MEBIBYTE)
    return raised.value.kind, raised.value.message


def test_redirects_are_followed_to_the_last_answer(client: Client, site: Site) -> None:
    site.pages = {
        "/a": redirect("/b", 301),
        "/b": redirect(f"{site.url}/c#part", 308),
        "/c": html("here"),
        "/once": redirect("c", 307),
        "/c?utm_source=letter": redirect("/c"),
    }
    answer = client.get(httpx2.URL(f"{site.url}/a"), max_bytes=MEBIBYTE)
    assert (str(answer.url), answer.status, answer.moved) == (f"{site.url}/c", 200, True)
    assert b"here" in answer.content
    assert not client.get(httpx2.URL(f"{site.url}/once"), max_bytes=MEBIBYTE).moved
    assert not client.get(httpx2.URL(f"{site.url}/c"), max_bytes=MEBIBYTE).moved
    # To another way to write the same address is no circle.
    assert client.get(httpx2.URL(f"{site.url}/c?utm_source=letter"), max_bytes=MEBIBYTE).status == 200


def test_redirects_that_go_round_or_on_and_on_or_nowhere_end(client: Client, site: Site) -> None:
    site.pages = {f"/{number}": redirect(f"/{number + 1}") for number in range(50)}
    site.pages |= {
        "/self": redirect("/self"),
        "/there": redirect("/back?utm_source=1"),
        "/back": redirect("/there"),
        "/nowhere": Page(b"", 302, {}),
        "/long": redirect("/" + "a" * 5000),
        "/broken": redirect("http://[::1"),
    }
    assert left_alone(client, site, "/self") == ("failed", "redirects in a circle")
    assert left_alone(client, site, "/there") == ("failed", "redirects in a circle")
    assert left_alone(client, site, "/0") == ("failed", "redirects more than 10 times")
    assert left_alone(client, site, "/nowhere") == ("failed", "answered 302 without a Location")
    assert "more than 2,048 characters" in left_alone(client, site, "/long")[1]
    assert left_alone(client, site, "/broken")[0] == "failed"
    assert len(site.requests) < 25


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://ann:x@127.0.0.1/"])
def test_a_redirect_out_of_the_web_is_refused(target: str, client: Client, site: Site) -> None:
    site.pages["/"] = redirect(target)
    assert left_alone(client, site, "/")[0] == "refused"


def test_reading_an_endless_page_stops_at_the_limit_and_memory_stays_flat(client: Client, site: Site) -> None:
    site.pages["/"] = endless
    tracemalloc.start()
    try:
        assert left_alone(client, site, "/") == ("too_large", "is larger than 1,048,576 bytes (PKM_MAX_OBJECT_BYTES)")
        assert tracemalloc.get_traced_memory()[1] < 6 * MEBIBYTE
    finally:
        tracemalloc.stop()
    # What the kernel takes in between counts too.
    assert site.sent_bytes < 32 * MEBIBYTE


def test_a_length_that_is_too_large_is_believed_at_once(client: Client, site: Site) -> None:
    def boast(handler: Handler) -> None:
        handler.start(f"Content-Length: {10**15}")
        handler.send(b"x" * 100)

    site.pages["/"] = boast
    assert left_alone(client, site, "/")[0] == "too_large"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gzip_bomb_does_not_go_off(layers: int, client: Client, site: Site) -> None:
    site.pages["/"] = page = bomb(layers=layers)
    assert len(page.body) < MEBIBYTE
    tracemalloc.start()
    try:
        assert left_alone(client, site, "/")[0] == ("too_large" if layers == 1 else "other_type")
        assert tracemalloc.get_traced_memory()[1] < 8 * MEBIBYTE
    finally:
        tracemalloc.stop()


def test_what_is_compressed_honestly_is_read_and_what_is_not_is_left_alone(client: Client, site: Site) -> None:
    encoded = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
    site.pages = {"/": bomb(MEBIBYTE), "/broken": Page(b"no gzip", headers=encoded)}
    assert client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE).content == b"a" * MEBIBYTE
    assert left_alone(client, site, "/broken")[0] == "failed"


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip;x"])
def test_an_encoding_that_was_not_asked_for_is_left_alone(encoding: str, client: Client, site: Site) -> None:
    site.pages["/"] = Page(b"x", headers={"Content-Type": "text/html", "Content-Encoding": encoding})
    assert left_alone(client, site, "/")[0] == "other_type"


@pytest.mark.parametrize("piece", [b"x", b"X-Drip: 1\r\n"])
def test_a_page_that_drips_is_given_up_in_time(piece: bytes, site: Site) -> None:
    site.pages["/"] = dripping(piece)
    begun = time.monotonic()
    with Client(SETTINGS.model_copy(update={"web_page_seconds": 0.4})) as client:
        assert left_alone(client, site, "/") == ("failed", "takes longer than 0.4 seconds")
    assert time.monotonic() - begun < 3


def test_the_time_of_a_page_counts_all_its_redirects(site: Site) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.2)
        head = ("HTTP/1.1 302 Found", f"Location: /{int(handler.path[1:]) + 1}", "Connection: close", "", "")
        handler.wfile.write("\r\n".join(head).encode())

    site.pages = {f"/{number}": slow for number in range(20)}
    with Client(SETTINGS.model_copy(update={"web_page_seconds": 0.5})) as client:
        assert left_alone(client, site, "/0") == ("failed", "takes longer than 0.5 seconds")
    assert len(site.requests) <= 3


def test_a_connection_that_breaks_or_talks_nonsense_is_a_failure(client: Client, site: Site) -> None:
    def nonsense(handler: Handler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    def cut(handler: Handler) -> None:
        handler.start("Content-Length: 1000")
        handler.send(b"x")

    def flood(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1_000_000)

    site.pages = {"/nonsense": nonsense, "/cut": cut, "/flood": flood}
    for path in site.pages:
        kind, message = left_alone(client, site, path)
        assert (kind, message[:18]) == ("failed", "can't be reached: ")


def test_a_connection_is_kept_whatever_the_answer_was(
    site: Site, monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    site.pages = {"/a": redirect("/b"), "/b": redirect("/none")}
    with public_network(monkeypatch) as internet:
        internet.routes[("127.0.0.1", site.port)] = site.port
        for _ in range(3):
            assert client.get(httpx2.URL(f"{site.url}/a"), max_bytes=MEBIBYTE).status == 404
        assert len(internet.connected) == 1


def test_hosts_are_asked_at_their_pace(site: Site) -> None:
    site.pages["/"] = html("x")
    pauses: list[float] = []
    with Client(SETTINGS.model_copy(update={"web_pace_seconds": 0.5}), pause=pauses.append) as client:
        for _ in range(3):
            client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE)
        client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE, may_visit=lambda _: 7.0)
        client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE)
    assert [round(pause, 1) for pause in pauses] == pytest.approx([0.5, 1.0, 1.5, 8.5], abs=0.2)


def test_a_server_that_is_busy_is_asked_again_after_the_time_that_it_says(site: Site) -> None:
    answers = [
        Page(b"", 503, {"Retry-After": "7"}),
        Page(b"", 429, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)}),
        html("here at last"),
    ]

    def busy(handler: Handler) -> None:
        page = answers.pop(0)
        handler.wfile.write(f"HTTP/1.1 {page.status} x\r\n".encode())
        own = {"Content-Length": str(len(page.body)), "Connection": "close"}
        for name, value in {**page.headers, **own}.items():
            handler.wfile.write(f"{name}: {value}\r\n".encode())
        handler.wfile.write(b"\r\n" + page.body)

    site.pages["/"] = busy
    pauses: list[float] = []
    with Client(SETTINGS, pause=pauses.append) as client:
        assert client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE).status == 200
    assert pauses == pytest.approx([7.0, 30.0], abs=2)


@pytest.mark.parametrize("after", ["3600", "99999999999999999999", "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_a_server_that_is_busy_for_long_is_not_waited_for(after: str, site: Site) -> None:
    site.pages["/"] = Page(b"", 503, {"Retry-After": after})
    pauses: list[float] = []
    with Client(SETTINGS, pause=pauses.append) as client:
        assert client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE).status == 503
    assert (pauses, len(site.requests)) == ([], 1)


def test_a_server_that_stays_busy_is_asked_three_times(site: Site) -> None:
    site.pages["/"] = Page(b"", 503, {"Retry-After": "nonsense"})
    pauses: list[float] = []
    with Client(SETTINGS, pause=pauses.append) as client:
        assert client.get(httpx2.URL(site.url), max_bytes=MEBIBYTE).status == 503
    assert (pauses, len(site.requests)) == ([1.0, 2.0], 3)


def test_servers_are_told_who_asks_and_nothing_else(site: Site) -> None:
    site.pages["/"] = Page(b"x", headers={"Set-Cookie": "a=b", "Content-Type": "text/html"})
    named = {"web_user_agent": "reader", "web_contact": "mailto:ann@example.org"}
    with Client(SETTINGS.model_copy(update=named)) as client:
        for _ in range(2):
            client.get(httpx2.URL(f"{site.url}/"), max_bytes=MEBIBYTE)
    for _, headers in site.requests:
        assert headers["User-Agent"].startswith("reader/")
        assert headers["User-Agent"].endswith(" (+mailto:ann@example.org)")
        assert headers["Accept-Encoding"] == "gzip, deflate"
        assert "Cookie" not in headers
