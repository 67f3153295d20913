"""What a site allows robots, and how fast: the Robots Exclusion Protocol (RFC 9309)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx2
from protego import Protego

from core.settings import Settings
from producers.web.client import Client, LeftAlone

__all__ = ["Robots"]

# RFC 9309: what comes after the first 500 KiB need not be read.
MAX_BYTES = 500 * 1024
_USER_AGENT = re.compile(r"^[ \t]*user[- ]?agent[ \t:]+([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
LONGEST_DELAY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Rules:
    """Rules of one origin, or why it can't be visited."""

    rules: Protego
    refusal: LeftAlone | None = None


class Robots:
    """Reads each origin's robots.txt once, when it is first asked about.

    A site without the file (any 4xx) allows everything; one whose file can't be read now (5xx) allows nothing.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._name = settings.web_user_agent
        self._by_origin: dict[str, _Rules] = {}

    def check(self, url: httpx2.URL) -> float:
        """Return the least seconds between two requests to the host of `url`.

        Raises LeftAlone when robots may not visit it, or only more rarely than once a minute.
        """
        found = self._rules(url)
        if found.refusal is not None:
            raise LeftAlone(found.refusal.kind, found.refusal.message)
        if not found.rules.can_fetch(str(url), self._name):
            raise LeftAlone("robots", "is not for robots, says its site's robots.txt")
        delay = found.rules.crawl_delay(self._name) or 0.0
        rate = found.rules.request_rate(self._name)
        if rate is not None:
            delay = max(delay, rate.seconds / rate.requests)
        if delay > LONGEST_DELAY_SECONDS:
            raise LeftAlone(
                "robots",
                f"may be visited once in {delay:g} seconds only, says its site's robots.txt; the longest that is"
                f" waited is {LONGEST_DELAY_SECONDS:g}",
            )
        return delay

    def sitemaps(self, url: httpx2.URL) -> list[str]:
        """Return the sitemaps that the robots.txt of the site of `url` names. Raises like `check`."""
        self.check(url)
        return list(self._rules(url).rules.sitemaps)

    def _rules(self, url: httpx2.URL) -> _Rules:
        file = url.copy_with(raw_path=b"/robots.txt", fragment=None)
        found = self._by_origin.get(str(file))
        if found is None:
            found = self._by_origin[str(file)] = self._read(file)
        return found

    def _read(self, file: httpx2.URL) -> _Rules:
        try:
            answer = self._client.get(file, max_bytes=MAX_BYTES, cut=True)
        except LeftAlone as refusal:
            return _Rules(Protego(), refusal)
        if answer.status >= 500 or answer.status == 429:
            message = f"its site's robots.txt answered {answer.status}, so nothing is visited now"
            return _Rules(Protego(), LeftAlone("robots", message))
        text = answer.content.decode("utf-8", errors="replace")
        return _Rules(Protego.parse(_with_few_names(text, self._name)))


def _with_few_names(text: str, name: str) -> str:
    """Call all robots that are not `name` the same, since a rule is stored once for each name that it is for."""
    ours = {name.lower(), "*"}

    def renamed(line: re.Match[str]) -> str:
        called = line[1].partition("#")[0].strip().lower()
        return line[0] if called.partition("/")[0] in ours else "User-agent: another"

    return _USER_AGENT.sub(renamed, text)
