"""Where producers may connect to: public addresses only, unless PKM_ALLOW_PRIVATE_ADDRESSES says otherwise.

A link, a redirect or a DNS answer that someone else wrote must not lead into the network that this process runs in.
A name is resolved once, every address that it has is checked, and the connection goes to a checked address: a second
answer of the DNS plays no part. TLS still verifies the name, not the address. Proxies of the environment are not
used, since they would resolve the name again.

    with guarded_client(settings) as client:
        response = client.get("https://example.org/")      # raises ForbiddenAddressError before it connects

`check_host` and `connect` are for protocols that are not HTTP.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx2

from core.errors import ForbiddenAddressError, UnreachableError, reason
from core.settings import Settings
from core.visible import visible

__all__ = ["Resolve", "check_host", "check_url", "connect", "guarded_client", "guarded_transport", "resolve"]

Resolve = Callable[[str, int], Sequence[str]]
"""Gives the numeric addresses of a name and port; raises OSError when there are none."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The special-purpose registries of IANA, version 4 and 6, without those that are globally reachable, and with what
# is public by number only. (`is_global` of the standard library differs between versions of Python.)
_AZURE_HOST = "168.63.129.16/32"
_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", _AZURE_HOST),
    )
)
# Every public address of version 6 is below 2000::/3. Outside are loopback, IPv4-mapped and -compatible, local,
# link-local and multicast ones; inside are Teredo and other assignments to protocols, documentation and 6to4.
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# RFC 6052: what a NAT64 gateway turns into the IPv4 address in the last 32 bits.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)
# Below it are protocols that are not HTTP, which a request sent to them could be made to speak.
_FIRST_FREE_PORT = 1024
_WEB_PORTS = frozenset({80, 443})

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver for the addresses of `host`; raises OSError when there are none."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def check_host(host: str, port: int, *, settings: Settings, resolve: Resolve = resolve) -> tuple[str, ...]:
    """Resolve `host` and return its addresses, numeric and distinct, for the caller to connect to.

    Raises ForbiddenAddressError unless all of them are public or private ones are allowed, and for a host that is
    neither an address nor a name in ASCII letters; UnreachableError when there is no such name.
    """
    literal = _literal(host)
    if literal is not None:
        addresses: list[Address] = [literal]
    else:
        try:
            # A link-local address comes with its interface, `fe80::1%eth0`.
            addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in resolve(host, port)]
        except (OSError, ValueError) as error:
            raise UnreachableError(f'host "{visible(host)}" has no address: {reason(error)}') from error
        if not addresses:
            raise UnreachableError(f'host "{visible(host)}" has no address')
    if not settings.allow_private_addresses:
        # One forbidden address among public ones is an attempt to be connected to sooner or later.
        for address in addresses:
            if not _is_public(address):
                raise ForbiddenAddressError(
                    f'host "{visible(host)}" is at {address}, which is not a public address: '
                    "set PKM_ALLOW_PRIVATE_ADDRESSES=1 to let producers reach private hosts"
                )
    return tuple(dict.fromkeys(str(address) for address in addresses))


def check_url(url: str | httpx2.URL) -> httpx2.URL:
    """Parse an address of the web; its host is checked when it is connected to.

    Raises ForbiddenAddressError when it can't be understood, has another scheme than http or https, no host, or a
    user name or password, which would get into keys and logs.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ForbiddenAddressError(f'"{visible(str(url))}" is no web address: {reason(error)}') from error
    if parsed.userinfo:
        raise ForbiddenAddressError(
            f'"{visible(str(parsed.copy_with(userinfo=b"")))}" was given with a user name or password: leave it out'
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ForbiddenAddressError(
            f'"{visible(str(parsed))}" is no web address: it must begin with http:// or https://'
        )
    return parsed


def connect(
    host: str, port: int, *, settings: Settings, timeout: float | None = None, resolve: Resolve = resolve
) -> socket.socket:
    """Connect to a checked address of `host`, trying one after the other, each for at most `timeout` seconds.

    Raises like `check_host`, and OSError of the last address when none answers.
    """
    failure: OSError | None = None
    for address in check_host(host, port, settings=settings, resolve=resolve):
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            failure = error
    raise failure or OSError(f"{host} has no address")


def guarded_transport(
    settings: Settings, *, resolve: Resolve = resolve, tls: ssl.SSLContext | None = None
) -> httpx2.BaseTransport:
    """Make the transport of an httpx2 client that connects to allowed addresses only, through redirects too.

    A request's extension `deadline`, seconds of `time.monotonic()`, bounds all of it: connecting, headers and body,
    however slowly they drip. Requests raise ForbiddenAddressError and UnreachableError (for a name without address)
    as they are, and what httpx2 raises otherwise. `tls` replaces the system's trusted authorities.
    """
    return _GuardedTransport(settings, resolve, tls or httpx2.create_ssl_context())


def guarded_client(
    settings: Settings, *, resolve: Resolve = resolve, tls: ssl.SSLContext | None = None, **options: Any
) -> httpx2.Client:
    """Make an httpx2 client on `guarded_transport`, blind to proxies and passwords of the environment.

    It follows no redirects unless `options`, those of httpx2.Client, say so.
    """
    transport = guarded_transport(settings, resolve=resolve, tls=tls)
    return httpx2.Client(transport=transport, trust_env=False, **options)


def _literal(host: str) -> Address | None:
    """Read an address in any spelling that some resolver takes for one: 127.1, 0x7f000001, 0177.0.0.1, [::1]."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        try:
            return ipaddress.IPv6Address(bare.replace("%25", "%").partition("%")[0])
        except ValueError:
            raise _no_host(host) from None
    if not _HOST_NAME.fullmatch(bare):
        raise _no_host(host)
    bare = bare.removesuffix(".")
    # As the URL standard has it: a name whose last part is a number is an address of version 4 or nothing.
    if not _NUMBER.fullmatch(bare.rpartition(".")[2]):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(bare))
    except OSError:
        raise _no_host(host) from None


def _no_host(host: str) -> ForbiddenAddressError:
    return ForbiddenAddressError(
        f'"{visible(host)}" is neither an address nor the name of a host (write others than ASCII letters as xn--…)'
    )


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address in _NAT64:
        return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


class _Backend(httpcore2.NetworkBackend):
    """Connects to what was checked, and to no socket file."""

    def __init__(self, settings: Settings, resolve: Resolve) -> None:
        self._settings = settings
        self._resolve = resolve
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for address in check_host(host, port, settings=self._settings, resolve=self._resolve):
            try:
                stream = self._inner.connect_tcp(
                    address, port, _remaining(timeout, httpcore2.ConnectTimeout), local_address, socket_options
                )
                return _Stream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError(f"{host} has no address")


class _Stream(httpcore2.NetworkStream):
    """A connection whose reads and writes end with the request's deadline."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _remaining(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        remaining = _remaining(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, remaining))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _remaining(timeout: float | None, error: type[httpcore2.TimeoutException]) -> float | None:
    deadline = _deadline.get()
    if deadline is None:
        return timeout
    left = deadline - time.monotonic()
    if left <= 0:
        raise error("the time for the request is over")
    return left if timeout is None else min(timeout, left)


class _GuardedTransport(httpx2.BaseTransport):
    def __init__(self, settings: Settings, resolve: Resolve, tls: ssl.SSLContext) -> None:
        self._settings = settings
        self._pool = httpcore2.ConnectionPool(ssl_context=tls, network_backend=_Backend(settings, resolve))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        # Every hop of a redirect comes through here.
        url = check_url(request.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        if port < _FIRST_FREE_PORT and port not in _WEB_PORTS and not self._settings.allow_private_addresses:
            raise ForbiddenAddressError(f'"{visible(str(url))}" names port {port}, which belongs to another protocol')
        deadline = request.extensions.get("deadline")
        with _until(deadline), _mapped_errors():
            response = self._pool.handle_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response, deadline),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, response: httpcore2.Response, deadline: float | None) -> None:
        self._response = response
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        chunks = self._response.iter_stream()
        while True:
            # Set only while the library reads: what the caller does between two chunks is another context.
            with _until(self._deadline), _mapped_errors():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        with _mapped_errors():
            self._response.close()


@contextmanager
def _until(deadline: float | None) -> Iterator[None]:
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def _mapped_errors() -> Iterator[None]:
    """Raise what httpcore2 raises as the exception of the same name in httpx2, as its own transport does."""
    try:
        yield
    except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
        raise getattr(httpx2, type(error).__name__)(str(error)) from error
