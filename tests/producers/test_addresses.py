"""Producers connect to public addresses only, however a forbidden one is spelt, resolved or redirected to."""

from __future__ import annotations

import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ForbiddenAddressError, UnreachableError
from core.settings import Settings
from internet import OTHER_PUBLIC, PUBLIC, Internet, public_network
from producers.addresses import check_host, check_url, connect, guarded_client

GUARDED = Settings()
OPEN = Settings().model_copy(update={"allow_private_addresses": True})

# Each as it stands in an address between `http://` and the port.
FORBIDDEN_HOSTS = [
    # dotted, and the ends of the ranges
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255"),
    *("192.168.0.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16"),
    # short, decimal, octal, hexadecimal, mixed and overlong
    *("127.1", "127.0.1", "10.1", "0", "2130706433", "2852039166", "3232235521"),
    *("017700000001", "0177.0.0.1", "0177.0.0.01", "0251.0376.0251.0376", "00000000177.0.0.1"),
    *("0x7f000001", "0X7F000001", "0x7f.0.0.1", "0x7f.0x0.0x0.0x1", "0xa9.0xfe.0xa9.0xfe", "0x7f.1", "127.0x1"),
    *("4294967296", "127.0.0.256", "1.1.1.1.1", "0x", "8.8.8.08"),
    # trailing dots and other signs
    *("127.0.0.1.", "2130706433.", "0x7f000001.", "127.0.0.1..", "127.0.0.1%20", "%31%32%37.0.0.1", "127.0.0.1%00"),
    *("localhost%00.example.com", "127.0.0.1\t", "127.0.0.1\r\nHost:x", "127.0.0.1 .example.com"),
    # digits and dots of other scripts, and a sign that is not seen
    *(
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
        "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460",
        "127\u30020\u30020\u30021",
    ),
    *("\uff11\uff10\uff0e\uff11", "\u0660.\u0660.\u0660.\u0660", "1\u00ad27.0.0.1"),
    # version 6: unspecified, loopback, local, link-local, site-local, multicast, metadata, documentation, discard
    *(
        "[::]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[0000:0000:0000:0000:0000:0000:0000:0001]",
        "[fc00::1]",
        "[fd12:3456::1]",
    ),
    *("[fe80::1]", "[fe80::1%25lo]", "[fec0::1]", "[ff02::1]", "[fd00:ec2::254]", "[fd20:ce::254]", "[2001:db8::1]"),
    *("[3fff::1]", "[100::1]", "[5f00::1]"),
    # version 4 inside version 6: mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:a9fe:a9fe]", "[::ffff:8.8.8.8]", "[::127.0.0.1]"),
    *("[::7f00:1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::7f00:1]"),
    *("[64:ff9b:1::8.8.8.8]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2002:808:808::1]"),
    *("[2001:0:4136:e378:8000:63bf:80ff:fffe]", "[2001:0:808:808::f7f7:f7f7]", "[fe80::5efe:127.0.0.1]"),
    # names
    *("localhost", "LOCALHOST", "\u24dbocalhost", "internal.example", "metadata.google.internal", "both.example"),
    *("v6.example", "scoped.example", "mapped.example", "nat64.example"),
]
FORBIDDEN_URLS = [
    # who looks for the host at another sign than we do is at another host
    "http://public.example@127.0.0.1/",
    "http://public.example:80@127.0.0.1/",
    "http://127.0.0.1@public.example/",
    "http://public.example\\@127.0.0.1/",
    "http://127.0.0.1\\@public.example/",
    "http://public.example%2f@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://127.0.0.1#@public.example/",
    "http://127.0.0.1?@public.example/",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "ftp://public.example/",
    "gopher://public.example:70/_GET",
    "dict://public.example:11211/stat",
    "ws://public.example/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "data:text/html,x",
    "jar:http://public.example!/",
    "http://public.example:22/",
    "http://public.example:25/",
    "https://public.example:80@/",
    "http://[127.0.0.1]/",
    "http://[::1/",
]
NO_URLS = ["http://", "http:127.0.0.1/", "http:///127.0.0.1/", "//127.0.0.1/", "127.0.0.1", ""]
NAMES = {
    "public.example": [[PUBLIC]],
    "localhost": [["::1", "127.0.0.1"]],
    "internal.example": [["10.1.2.3"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "both.example": [[PUBLIC, "127.0.0.1"]],
    "v6.example": [["fd00:ec2::254"]],
    "scoped.example": [["fe80::1%eth0"]],
    "mapped.example": [["::ffff:10.0.0.1"]],
    "nat64.example": [["64:ff9b::a00:1"]],
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    to = "/"

    def do_GET(self) -> None:
        if self.path == "/slow-headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self._drip(b"X-A: b\r\n")
        elif self.path == "/slow-body":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            self._drip(b"x")
        elif self.path == "/":
            body = f"{self.headers['Host']}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_response(302)
            self.send_header("Location", type(self).to)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _drip(self, piece: bytes) -> None:
        self.close_connection = True
        try:
            for _ in range(200):
                self.wfile.write(piece)
                time.sleep(0.05)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news here."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serve(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    yield from serve(_Server(("127.0.0.1", 0), _Handler))


@pytest.fixture(scope="module")
def tls_site(authority: trustme.CA) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("public.example").configure_cert(context)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    yield from serve(server)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch, site: int, tls_site: int) -> Iterator[Internet]:
    with public_network(monkeypatch) as network:
        network.names.update(NAMES)
        network.routes.update({(PUBLIC, 80): site, (PUBLIC, 443): tls_site, (PUBLIC, 22): site, (PUBLIC, 25): site})
        yield network


# Reading the system's authorities takes longer than a test.
TLS = httpx2.create_ssl_context()


def guarded(internet: Internet, tls: ssl.SSLContext = TLS, **options: Any) -> httpx2.Client:
    return guarded_client(GUARDED, resolve=internet.resolve, tls=tls, **options)


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS)
def test_a_forbidden_address_is_refused_however_it_is_spelt(host: str, internet: Internet) -> None:
    with guarded(internet) as client, pytest.raises(ForbiddenAddressError):
        client.get(check_url(f"http://{host}/"))
    assert internet.connected == []


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS)
def test_protocols_other_than_http_are_refused_the_same(host: str, internet: Internet) -> None:
    with pytest.raises(ForbiddenAddressError):
        connect(host, 9418, settings=GUARDED, resolve=internet.resolve)
    assert internet.connected == []


@pytest.mark.parametrize("url", FORBIDDEN_URLS + NO_URLS)
def test_an_address_that_hides_its_host_or_is_of_no_web_site_is_refused(url: str, internet: Internet) -> None:
    with guarded(internet) as client, pytest.raises(ForbiddenAddressError):
        client.get(check_url(url))
    assert internet.connected == []


# A header can't carry the others.
REDIRECTS = [f"http://{host}/" for host in FORBIDDEN_HOSTS if host.isascii() and host.isprintable()] + FORBIDDEN_URLS


@pytest.mark.parametrize("target", [*REDIRECTS, "//127.0.0.1/", "//2130706433/"])
def test_a_redirect_to_a_forbidden_address_is_refused(
    target: str, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "to", target)
    with (
        guarded(internet, follow_redirects=True) as client,
        pytest.raises((ForbiddenAddressError, httpx2.RemoteProtocolError)),
    ):
        client.get("http://public.example/redirect")
    assert internet.connected == [(PUBLIC, 80)]


def test_an_answer_that_changes_after_the_check_is_not_asked_for(internet: Internet) -> None:
    internet.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    with guarded(internet) as client:
        assert client.get("http://rebinding.example/").text == "rebinding.example"
        # The connection is kept: no second answer is needed.
        assert client.get("http://rebinding.example/").text == "rebinding.example"
    assert internet.resolved == ["rebinding.example"]
    assert internet.connected == [(PUBLIC, 80)]
    with guarded(internet) as client, pytest.raises(ForbiddenAddressError):
        client.get("http://rebinding.example/")
    assert internet.connected == [(PUBLIC, 80)]


def test_the_next_address_is_tried_when_one_does_not_answer(internet: Internet) -> None:
    internet.names["two.example"] = [[OTHER_PUBLIC, PUBLIC]]
    with guarded(internet) as client:
        assert client.get("http://two.example/").text == "two.example"
    connect("two.example", 80, settings=GUARDED, resolve=internet.resolve).close()
    assert internet.connected == [(OTHER_PUBLIC, 80), (PUBLIC, 80)] * 2


def test_when_no_address_answers_the_last_failure_is_raised(internet: Internet) -> None:
    internet.names["down.example"] = [[OTHER_PUBLIC]]
    with guarded(internet) as client, pytest.raises(httpx2.ConnectError):
        client.get("http://down.example/")
    with pytest.raises(ConnectionRefusedError):
        connect("down.example", 80, settings=GUARDED, resolve=internet.resolve)


def test_a_name_without_address_is_named(internet: Internet) -> None:
    internet.names["empty.example"] = [[]]
    for host in ("nowhere.example", "empty.example"):
        with pytest.raises(UnreachableError, match=f'host "{host}" has no address'):
            check_host(host, 80, settings=GUARDED, resolve=internet.resolve)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_used(
    variable: str, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9/")
    with guarded(internet) as client:
        assert client.get("http://public.example/").text == "public.example"
    assert internet.connected == [(PUBLIC, 80)]


def test_tls_verifies_the_name_and_not_the_address(internet: Internet, authority: trustme.CA) -> None:
    internet.names["other.example"] = [[PUBLIC]]
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with guarded(internet, trusting) as client:
        assert client.get("https://public.example/").text == "public.example"
        with pytest.raises(httpx2.ConnectError, match=r"not valid for 'other\.example'"):
            client.get("https://other.example/")
    with (
        guarded(internet) as client,
        pytest.raises(httpx2.ConnectError, match="certificate verify failed"),
    ):
        client.get("https://public.example/")


@pytest.mark.parametrize("path", ["/slow-headers", "/slow-body"])
def test_the_deadline_bounds_headers_and_body_however_slowly_they_drip(path: str, internet: Internet) -> None:
    begun = time.monotonic()
    with (
        guarded(internet, timeout=5) as client,
        pytest.raises(httpx2.ReadTimeout),
    ):
        client.get(f"http://public.example{path}", extensions={"deadline": time.monotonic() + 0.5})
    assert time.monotonic() - begun < 3


def test_private_addresses_can_be_allowed_wholesale(site: int) -> None:
    with guarded_client(OPEN) as client:
        assert client.get(f"http://127.0.0.1:{site}/").text == f"127.0.0.1:{site}"
        assert client.get(f"http://2130706433:{site}/").status_code == 200
        with pytest.raises(ForbiddenAddressError, match="user name or password"):
            client.get(f"http://ann:secret@127.0.0.1:{site}/")
    connect("127.0.0.1", site, settings=OPEN).close()


def test_the_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(ForbiddenAddressError) as raised:
        check_url("https://ann:secret@example.org/a")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert check_host(address, 443, settings=GUARDED) == (str(ipaddress.ip_address(address)),)


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_is_refused_by_us(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    try:
        check_host(str(address), 80, settings=GUARDED)
    except ForbiddenAddressError:
        return
    assert address.is_global or address in ipaddress.ip_network("64:ff9b::/96")
    assert not address.is_multicast
