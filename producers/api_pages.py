"""Pages of a JSON API over HTTP: as fast as it allows, within bounds of size and time, from public addresses only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx2
import orjson
import structlog

from core.errors import ForbiddenAddressError, SettingsError, UnreachableError, reason
from core.settings import Settings
from core.visible import visible
from producers.addresses import check_url, guarded_client

__all__ = ["ApiPages", "Page"]

REDIRECTS = 5
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
_MOVED = frozenset({301, 302, 303, 307, 308})
_TOO_MANY = frozenset({429, 503})
_PASSING = frozenset({408, 500, 502, 504})


@dataclass(frozen=True, slots=True)
class Page:
    """A page's JSON value, and the address of the next one where a Link header names it (RFC 8288)."""

    value: Any
    next_url: httpx2.URL | None


class _Passing(Exception):  # noqa: N818 - it is no error until it lasts
    """A fault that may pass; `seconds` is how long the server asks to wait, if it does."""

    def __init__(self, what: str, seconds: float | None = None) -> None:
        super().__init__(what)
        self.seconds = seconds


class ApiPages:
    """Gets pages of one origin; the bearer token PKM_API_TOKEN goes there, and nowhere else.

    A server that asks to wait (429 or 503 with Retry-After, or a spent X-RateLimit) is obeyed for up to
    `settings.api_patience_seconds` a page; other faults that may pass are retried for `settings.retry_seconds`. A
    page may take `settings.request_seconds` and have `settings.api_page_bytes`, counted as it unfolds.

    Raises ForbiddenAddressError for an address that is none, or not public, and for a next page or redirect on
    another origin; SettingsError for a token that would travel in plain text.
    """

    def __init__(self, url: str, *, settings: Settings, pause: Callable[[float], None] = time.sleep) -> None:
        self._origin = _origin(check_url(url))
        self._settings = settings
        self._pause = pause
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "pkm-lakehouse"}
        if settings.api_token is not None:
            if self._origin[0] != "https" and not settings.allow_private_addresses:
                raise SettingsError(f'PKM_API_TOKEN would travel in plain text to "{visible(url)}": use https')
            headers["Authorization"] = f"Bearer {settings.api_token.get_secret_value()}"
        self._client = guarded_client(settings, headers=headers, timeout=settings.request_seconds)

    def get(self, url: httpx2.URL) -> Page:
        """Get a page. Raises UnreachableError when there is none, also after all patience."""
        began = time.monotonic()
        waited, attempt = 0.0, 0
        while True:
            try:
                return self._get(url)
            except _Passing as passing:
                attempt += 1
                longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
                jittered = random.uniform(longest / 2, longest)  # noqa: S311 - spreads retries, guards nothing
                # Who asks for no time at all is not asked again at once for ever.
                seconds = max(jittered, passing.seconds or 0.0)
                if passing.seconds is not None:
                    waited += seconds
                    over = waited > self._settings.api_patience_seconds
                else:
                    over = time.monotonic() - began - waited > self._settings.retry_seconds
                if over:
                    raise UnreachableError(
                        f"{_shown(url)} {passing}, for too long: the same command goes on where this one ended"
                    ) from passing
                if seconds >= 1:
                    structlog.get_logger(module=__name__).info("waiting", why=str(passing), seconds=round(seconds, 1))
                self._pause(seconds)

    def _get(self, url: httpx2.URL) -> Page:
        deadline = time.monotonic() + self._settings.request_seconds
        for _ in range(REDIRECTS + 1):
            self._check_origin(url)
            request = self._client.build_request("GET", url, extensions={"deadline": deadline})
            try:
                # Redirects are followed here: the client would read their bodies, however long.
                response = self._client.send(request, stream=True, follow_redirects=False)
                try:
                    if response.status_code in _MOVED and "Location" in response.headers:
                        url = _joined(url, response.headers["Location"])
                        continue
                    _check_status(response)
                    return Page(_json(self._body(response), url), _next(response))
                finally:
                    response.close()
            except httpx2.TransportError as error:
                raise _Passing(f"does not answer: {reason(error)}") from error
            except httpx2.DecodingError as error:
                raise UnreachableError(f"{_shown(url)} answers what can't be unpacked: {reason(error)}") from error
        raise UnreachableError(f"{_shown(url)} redirects more than {REDIRECTS} times")

    def _check_origin(self, url: httpx2.URL) -> None:
        if _origin(check_url(url)) != self._origin:
            raise ForbiddenAddressError(
                f"the API leads to {_shown(url)}, which is another origin: the token and the trust are not for it"
            )

    def _body(self, response: httpx2.Response) -> bytes:
        limit = self._settings.api_page_bytes
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > limit:
                raise UnreachableError(
                    f"{_shown(response.url)} answers more than {limit:,} bytes: ask for smaller pages, or raise "
                    "PKM_API_PAGE_BYTES"
                )
        return bytes(body)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _check_status(response: httpx2.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    spent = status == 403 and response.headers.get("X-RateLimit-Remaining") == "0"
    if status in _TOO_MANY or spent:
        raise _Passing(f"asks to wait ({status})", _asked_seconds(response.headers, now=datetime.now(UTC)))
    if status in _PASSING:
        raise _Passing(f"answers {status}")
    hint = ": check PKM_API_TOKEN" if status in {401, 403} else ""
    if status in {400, 404, 410, 422}:
        hint = ": check the address; --from-start forgets a place that the API does not know any more"
    raise UnreachableError(f"{_shown(response.url)} answers {status}{hint}")


def _asked_seconds(headers: httpx2.Headers, *, now: datetime) -> float | None:
    """Return how long to wait by Retry-After (seconds or a date, RFC 9110) or X-RateLimit-Reset (a Unix time)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    if text:
        try:
            asked = parsedate_to_datetime(text)
        except ValueError:
            return None
        return max(0.0, (asked.replace(tzinfo=asked.tzinfo or UTC) - now).total_seconds())
    reset = headers.get("X-RateLimit-Reset", "").strip()
    if reset.isascii() and reset.isdecimal():
        return max(0.0, float(reset[:12]) - now.timestamp())
    return None


def _json(body: bytes, url: httpx2.URL) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UnreachableError(f"{_shown(url)} answers what is not JSON (byte {error.pos})") from error


def _next(response: httpx2.Response) -> httpx2.URL | None:
    target = response.links.get("next", {}).get("url")
    return None if target is None else _joined(response.url, target)


def _joined(url: httpx2.URL, target: str) -> httpx2.URL:
    try:
        return url.join(target)
    except httpx2.InvalidURL as error:
        raise ForbiddenAddressError(f"the API leads to an address that is none: {reason(error)}") from error


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _shown(url: httpx2.URL) -> str:
    # What follows the path may hold a key.
    return visible(str(url.copy_with(query=None, fragment=None)))
