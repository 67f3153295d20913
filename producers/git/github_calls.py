"""Requests to GitHub's REST API: one at a time, within its rate limits, and never to another host.

What the API's documentation asks for: wait for `retry-after`; with no requests remaining wait for
`x-ratelimit-reset`; after any other refusal for the rate wait a minute, and longer each time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
import structlog

from core.errors import MissingError, SourceError, UnreachableError, reason
from core.settings import Settings
from core.visible import visible
from producers.addresses import guarded_client

__all__ = ["Answer", "GitHubCalls", "LargeAnswerError"]

API_VERSION = "2022-11-28"
ATTEMPTS = 5
FAULTS = frozenset({500, 502, 503, 504})
FIRST_PAUSE_SECONDS = 1.0
SECONDARY_PAUSE_SECONDS = 60.0
# A limit is of an hour; what asks for more is out of order.
LONGEST_PAUSE_SECONDS = 3_900.0
TOLD_PAUSE_SECONDS = 5.0
REDIRECTS = 3
# The documentation's limit of a tree's listing is 7 MB.
JSON_BYTES = 32 * 1024 * 1024
MOST_PAGES = 1_000
SHOWN_CHARACTERS = 200
_NEXT = re.compile(r'<([^<>]+)>\s*;[^,]*\brel="?next"?', re.IGNORECASE)


class LargeAnswerError(SourceError):
    """An answer is larger than it may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API said: its status is 200 or 304 (not modified)."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """Return the JSON that was sent; raises SourceError when it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise SourceError(
                "the GitHub API answered something that is not JSON: is PKM_GITHUB_URL right?"
            ) from error


class GitHubCalls:
    """Makes requests. All raise MissingError for what is not there or not for us, SourceError for answers that can't
    be used, UnreachableError after retries, ForbiddenAddressError for private hosts.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._pause, self._clock = settings, pause, clock
        self._base = httpx2.URL(settings.github_url.rstrip("/") + "/")
        if self._base.scheme != "https" and not settings.allow_private_addresses:
            raise SourceError(
                f'PKM_GITHUB_URL="{settings.github_url}" would send the token unprotected: use https, or set '
                "PKM_ALLOW_PRIVATE_ADDRESSES=1"
            )
        self._client = guarded_client(settings, timeout=settings.request_seconds)
        self._blocked_until = 0.0

    def close(self) -> None:
        """Close connections that are kept."""
        self._client.close()

    def get(
        self,
        path: str,
        *,
        accept: str = "application/vnd.github+json",
        etag: str | None = None,
        most_bytes: int = JSON_BYTES,
    ) -> Answer:
        """Get `path` below the API's address; with `etag` the answer may be 304.

        Raises LargeAnswerError when there are more than `most_bytes`.
        """
        return self._get(self._base.join(path), accept, etag, most_bytes)

    def pages(self, path: str) -> Iterator[Any]:
        """Give the items of a list, page by page."""
        target: httpx2.URL | None = self._base.join(path)
        for _ in range(MOST_PAGES):
            if target is None:
                return
            answer = self._get(target, "application/vnd.github+json", None, JSON_BYTES)
            items = answer.json()
            if not isinstance(items, list):
                raise SourceError("the GitHub API answered something that is no list: is PKM_GITHUB_URL right?")
            yield from items
            following = _NEXT.search(answer.headers.get("link", ""))
            target = self._own(target, following[1]) if following else None
        raise SourceError(f"the GitHub API gives more than {MOST_PAGES} pages of {visible(path)}")

    def _get(self, target: httpx2.URL, accept: str, etag: str | None, most_bytes: int) -> Answer:
        headers = {"Accept": accept, "X-GitHub-Api-Version": API_VERSION, "User-Agent": "pkm-lakehouse"}
        if etag is not None:
            headers["If-None-Match"] = etag
        if self._settings.github_token is not None:
            headers["Authorization"] = f"Bearer {self._settings.github_token.get_secret_value()}"
        problem = ""
        for attempt in range(ATTEMPTS):
            self._wait(self._blocked_until - self._clock())
            try:
                answer = self._followed(target, headers, most_bytes)
            except httpx2.TransportError as error:
                problem = reason(error)
                self._pause(FIRST_PAUSE_SECONDS * 2**attempt)
                continue
            if answer.headers.get("x-ratelimit-remaining") == "0":
                self._blocked_until = max(self._blocked_until, _number(answer.headers, "x-ratelimit-reset") + 1)
            if answer.status in {200, 304}:
                return answer
            problem = f"HTTP {answer.status}: {_message(answer)}"
            if answer.status in FAULTS:
                self._pause(max(_number(answer.headers, "retry-after"), FIRST_PAUSE_SECONDS * 2**attempt))
            elif _is_rate_limit(answer):
                if answer.headers.get("x-ratelimit-remaining") != "0" or "retry-after" in answer.headers:
                    asked = _number(answer.headers, "retry-after") or SECONDARY_PAUSE_SECONDS * 2**attempt
                    self._blocked_until = max(self._blocked_until, self._clock() + asked)
            else:
                raise _refusal(answer, target)
        raise UnreachableError(
            f"the GitHub API at {self._base.host} refused or failed {ATTEMPTS} times ({problem}): try again later, "
            "or set PKM_GITHUB_TOKEN"
        )

    def _followed(self, target: httpx2.URL, headers: Mapping[str, str], most_bytes: int) -> Answer:
        # A repository that was renamed or moved is somewhere else below the same address.
        for _ in range(REDIRECTS + 1):
            deadline = time.monotonic() + self._settings.git_seconds
            with self._client.stream("GET", target, headers=headers, extensions={"deadline": deadline}) as response:
                if not response.has_redirect_location:
                    return Answer(response.status_code, _body(response, most_bytes), response.headers)
                target = self._own(target, response.headers["Location"])
        raise SourceError(f"the GitHub API redirects more than {REDIRECTS} times")

    def _own(self, source: httpx2.URL, address: str) -> httpx2.URL:
        base = self._base
        try:
            target = source.join(address)
        except httpx2.InvalidURL as error:
            raise SourceError("the GitHub API leads to an address that can't be understood") from error
        if (target.scheme, target.host, target.port) != (base.scheme, base.host, base.port):
            raise SourceError(f"the GitHub API leads to another host, {visible(target.host)}: that is not followed")
        return target

    def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        if seconds > LONGEST_PAUSE_SECONDS:
            raise UnreachableError(
                f"the GitHub API asks to wait for {seconds:,.0f} s: try again later, or set PKM_GITHUB_TOKEN"
            )
        if seconds > TOLD_PAUSE_SECONDS:
            structlog.get_logger(module=__name__).warning(
                "waiting for the rate limit of the GitHub API", seconds=round(seconds)
            )
        self._pause(seconds)


def _body(response: httpx2.Response, most_bytes: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > most_bytes:
            raise LargeAnswerError(f"the GitHub API answers with more than {most_bytes:,} bytes")
    return bytes(body)


def _is_rate_limit(answer: Answer) -> bool:
    if answer.status == 429:
        return True
    # 403 is what a token without permission gets too.
    limited = answer.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in answer.headers
    return answer.status == 403 and (limited or "rate limit" in _message(answer).lower())


def _refusal(answer: Answer, target: httpx2.URL) -> Exception:
    what = f"the GitHub API at {visible(target.path)} said: HTTP {answer.status}, {_message(answer)}"
    if answer.status in {401, 403}:
        return MissingError(f"{what}: set PKM_GITHUB_TOKEN to a token that may read the repository's contents")
    if answer.status in {404, 409, 422, 451}:
        return MissingError(f"{what}: check the name; a private repository needs PKM_GITHUB_TOKEN")
    return SourceError(what)


def _message(answer: Answer) -> str:
    try:
        said = answer.json()
    except SourceError:
        return "no reason"
    message = said.get("message") if isinstance(said, dict) else None
    return visible(str(message or "no reason"))[:SHOWN_CHARACTERS].rstrip(".")


def _number(headers: Mapping[str, str], name: str) -> float:
    text = headers.get(name, "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0.0
