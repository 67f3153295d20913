"""One GET of the web: paced by host, redirects, size and time bounded, to allowed addresses only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final, Literal

import httpx2

from core.errors import ForbiddenAddressError, UnreachableError, reason
from core.settings import Settings
from producers.addresses import check_url, guarded_client
from producers.web.urls import MAX_CHARACTERS, identity_of, site_of

__all__ = ["Answer", "Client", "Kind", "LeftAlone"]

Kind = Literal["robots", "refused", "too_large", "other_type", "off_site", "failed"]

MAX_REDIRECTS = 10
READ_SECONDS = 10.0
RETRIES = 2
UNWANTED_BYTES = 64 * 1024
LONGEST_PAUSE_SECONDS = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PERMANENT = frozenset({301, 308})
_BUSY = frozenset({429, 502, 503, 504})
# Others have no decoder here, or one whose output can't be bounded.
_ENCODINGS: Final = ("", "identity", "gzip", "x-gzip", "deflate")


class LeftAlone(Exception):  # noqa: N818 - a verdict on a page, not a fault; never leaves `producers.web`
    """Unwinds the reading of a page: what kind of reason there is, and a sentence."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(kind, message)
        self.kind: Kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer after redirects; `content` is empty unless the status is 200.

    `moved` says that permanent redirects alone led from the address that was asked for to another.
    """

    url: httpx2.URL
    status: int
    headers: Mapping[str, str]
    content: bytes
    moved: bool


class Client:
    """Asks one host at a time, with at least `settings.web_pace_seconds` between two requests to it.

    To be closed, or used in a `with`. Belongs to one thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        http: httpx2.Client | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._http = http or guarded_client(settings)
        self._pause = pause
        self._not_before: dict[str, float] = {}
        contact = f" (+{settings.web_contact})" if settings.web_contact else ""
        self._headers = {
            "User-Agent": f"{settings.web_user_agent}/{version('pkm-lakehouse')}{contact}",
            "Accept": "text/html,application/xhtml+xml,text/markdown,text/plain,application/json;q=0.9,*/*;q=0.5",
            "Accept-Encoding": "gzip, deflate",
        }

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(
        self,
        url: httpx2.URL,
        *,
        max_bytes: int,
        cut: bool = False,
        may_visit: Callable[[httpx2.URL], float] = lambda _: 0.0,
        headers: Callable[[str], Mapping[str, str]] = lambda _: {},
        screen: Callable[[httpx2.Response, bytes], None] = lambda *_: None,
    ) -> Answer:
        """Get `url`, following at most 10 redirects, all within `settings.web_page_seconds` of transfer.

        `may_visit` is asked about every address on the way and returns the least seconds between two requests to its
        host, or raises LeftAlone. `headers` gives more request headers for an identity. `screen` sees the answer with
        its first bytes, and raises LeftAlone when the rest is not wanted. Of content that is larger than `max_bytes`,
        counted decoded while it arrives, only the start is read when it may be `cut`.

        Raises LeftAlone when the page can't be had.
        """
        left = self._settings.web_page_seconds
        visited: set[str] = set()
        permanent = True
        # Cookies live as long as the redirects of one page.
        self._http.cookies.clear()
        while True:
            # Not by identity: to another way to write the same address is where many redirect.
            if str(url) in visited:
                raise LeftAlone("failed", "redirects in a circle")
            if len(visited) > MAX_REDIRECTS:
                raise LeftAlone("failed", f"redirects more than {MAX_REDIRECTS} times")
            visited.add(str(url))
            pace_seconds = max(may_visit(url), self._settings.web_pace_seconds)
            for attempt in range(RETRIES + 1):
                self._wait(site_of(url), pace_seconds)
                begun = time.monotonic()
                with self._asked(url, headers(identity_of(url)), seconds=left) as response:
                    status = response.status_code
                    pause_seconds = _pause_seconds(response, attempt)
                    last = status not in _BUSY or attempt == RETRIES or pause_seconds > LONGEST_PAUSE_SECONDS
                    if status == 200:
                        content = _content(response, max_bytes, cut=cut, screen=screen)
                    else:
                        content = b""
                        _finish(response)
                left -= time.monotonic() - begun
                if last:
                    break
                self._pause(pause_seconds)
            if status not in _REDIRECTS:
                return Answer(url, status, response.headers, content, moved=permanent and len(visited) > 1)
            permanent = permanent and status in _PERMANENT
            url = _next(url, response)

    def _wait(self, site: str, pace_seconds: float) -> None:
        """Wait for the host's turn."""
        now = time.monotonic()
        seconds = max(0.0, self._not_before.get(site, now) - now)
        if seconds:
            self._pause(seconds)
        self._not_before[site] = now + seconds + pace_seconds

    @contextlib.contextmanager
    def _asked(self, url: httpx2.URL, headers: Mapping[str, str], *, seconds: float) -> Iterator[httpx2.Response]:
        request = self._http.build_request(
            "GET",
            url,
            headers={**self._headers, **headers},
            timeout=READ_SECONDS,
            extensions={"deadline": time.monotonic() + seconds},
        )
        try:
            response = self._http.send(request, stream=True, follow_redirects=False)
            try:
                yield response
            finally:
                response.close()
        except ForbiddenAddressError as error:
            raise LeftAlone("refused", str(error)) from error
        except httpx2.TimeoutException as error:
            raise LeftAlone("failed", f"takes longer than {self._settings.web_page_seconds:g} seconds") from error
        except (httpx2.HTTPError, UnreachableError) as error:
            raise LeftAlone("failed", f"can't be reached: {reason(error)}") from error


def _content(
    response: httpx2.Response, max_bytes: int, *, cut: bool, screen: Callable[[httpx2.Response, bytes], None]
) -> bytes:
    too_large = LeftAlone("too_large", f"is larger than {max_bytes:,} bytes (PKM_MAX_OBJECT_BYTES)")
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise LeftAlone("other_type", f'is encoded as "{encoding[:40]}", which was not asked for')
    declared = response.headers.get("Content-Length", "")
    if not cut and declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    # The library decodes at most 1 MiB at a time, so a bomb is seen before it has gone off.
    for part in response.iter_bytes():
        if not size:
            screen(response, part)
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            if not cut:
                raise too_large
            break
    if not size:
        screen(response, b"")
    return b"".join(parts)[:max_bytes]


def _finish(response: httpx2.Response) -> None:
    """Read what nobody wants, if it is little: a connection that was read to the end is used again."""
    size = 0
    for part in response.iter_raw():
        size += len(part)
        if size > UNWANTED_BYTES:
            return


def _next(url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
    location = response.headers.get("Location", "")
    if not location:
        raise LeftAlone("failed", f"answered {response.status_code} without a Location")
    if len(location) > MAX_CHARACTERS:
        raise LeftAlone("failed", f"redirects to an address of more than {MAX_CHARACTERS:,} characters")
    try:
        return check_url(url.join(location)).copy_with(fragment=None)
    except ForbiddenAddressError as error:
        raise LeftAlone("refused", f"redirects to where producers may not go: {error}") from error
    except httpx2.InvalidURL as error:
        raise LeftAlone("failed", f"redirects to what is no address: {reason(error)}") from error


def _pause_seconds(response: httpx2.Response, attempt: int) -> float:
    """How long to wait before the next attempt: what Retry-After says, seconds or a date, else 1, 2 … seconds."""
    wanted = response.headers.get("Retry-After", "").strip()
    if wanted.isascii() and wanted.isdecimal():
        return float(wanted[:9])
    if wanted:
        with contextlib.suppress(ValueError):
            return max(0.0, parsedate_to_datetime(wanted).timestamp() - time.time())
    return float(2**attempt)
