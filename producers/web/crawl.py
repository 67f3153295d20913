"""From start addresses to the stream: what is new or changed is announced, what is gone is announced as deleted.

A start address has a cursor of its own (`producers.cursors`), with every page that was announced from it. A later run
asks for all of them again, on condition that they changed, and follows the links of those that did.

- Identity: the page's address after redirects, normalised (`urls.identity_of`). Not what the page calls itself
  (`rel=canonical`): that is somebody's word, and may name somebody else's page.
- Gone: 410 is believed at once. 404, and a permanent redirect to another page, must be seen in two runs: servers say
  so for a while when they are being changed.
- Order: first the start addresses, then by distance from them; so runs with the same limit see the same pages.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import httpx2
import structlog

from core.settings import Settings
from core.visible import visible
from operators.formats.detect import is_readable_type, looks_binary
from producers.addresses import check_url
from producers.announce import SourceItem
from producers.web.client import Answer, Client, LeftAlone
from producers.web.known import KnownPage, validators
from producers.web.links import links_of
from producers.web.publish import SOURCE_TYPE, Publisher
from producers.web.robots import Robots
from producers.web.sitemaps import is_sitemap, pages_in
from producers.web.urls import identity_of, link_target, site_of

__all__ = ["WebSummary", "crawl"]

# Of addresses that wait to be visited, so many times those that may be are remembered.
WAITING_FACTOR = 10
# What may be otherwise at the next run, although the page that links to it is the same.
_FOR_A_WHILE = frozenset({"failed", "robots"})
_CONTENT_TYPE = re.compile(r"([\w.+-]{1,64}/[\w.+-]{1,64})[ \t]*(?:;.*?\bcharset=[\"']?([\w.:-]{1,40}))?", re.ASCII)

Report = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSummary:
    """What a run did. Pages: `announced` (new or changed), `unchanged`, `deleted`, and `missing`, which are deleted
    if they still are missing at the next run; the others were left alone for the reason that the field names."""

    announced: int = 0
    uploaded: int = 0
    already_there: int = 0
    content_bytes: int = 0
    by_content_type: Mapping[str, int] = field(default_factory=dict)
    unchanged: int = 0
    deleted: int = 0
    missing: int = 0
    robots: int = 0
    refused: int = 0
    off_site: int = 0
    other_type: int = 0
    too_large: int = 0
    failed: int = 0
    over_limit: int = 0
    failed_starts: Mapping[str, str] = field(default_factory=dict)
    """Why start addresses could not be read."""


def crawl(
    urls: Sequence[str],
    *,
    settings: Settings,
    depth: int = 0,
    sitemap: bool = False,
    max_pages: int = 1000,
    from_start: bool = False,
    on_progress: Callable[[int], None] | None = None,
    on_left_alone: Report | None = None,
    client: Client | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> WebSummary:
    """Announce the pages at `urls`, and those that they link to within their sites, up to `depth` links away.

    With `sitemap`, an address is that of a sitemap, or of a site whose sitemaps are looked for in robots.txt and at
    /sitemap.xml; the pages in them are the start. At most `max_pages` are visited for each address. With
    `from_start`, what is known from earlier runs is forgotten, and every page announced. `on_progress` hears how many
    more pages are done, `on_left_alone(url, reason)` of those that could not be read (default: a warning in the log).

    An event is announced after its object is complete, and the cursor moves after both: a run that was stopped is
    completed by another. Raises ForbiddenAddressError for one of `urls` that is no web address, FencedError when
    another run ingests the same address at the same time, and what `announce` raises. A page that can't be read
    stops nothing.
    """
    starts = list({identity_of(url): url for url in map(check_url, urls)}.values())
    counts: Counter[str] = Counter()
    by_content_type: Counter[str] = Counter()
    failed_starts: dict[str, str] = {}
    with client or Client(settings) as own:
        robots = Robots(own, settings)
        for start in starts:
            name = f"{identity_of(start)} sitemap" if sitemap else identity_of(start)
            publisher = Publisher(settings, name=name, now=now, from_start=from_start)
            limits = _Limits(depth, max_pages, settings.max_object_bytes)
            pages = _Crawl(start, own, robots, publisher, limits, on_left_alone or _log)
            pages.run(pages.from_sitemaps() if sitemap else [start], on_progress=on_progress)
            counts += pages.counts + publisher.counts
            by_content_type += publisher.by_content_type
            if pages.problem:
                failed_starts[str(start)] = pages.problem
    return WebSummary(
        **cast("dict[str, Any]", counts),
        by_content_type=dict(sorted(by_content_type.items())),
        failed_starts=failed_starts,
    )


def _log(url: str, reason: str) -> None:
    structlog.get_logger(module=__name__).warning("left alone", url=visible(url), reason=visible(reason))


class _Limits(NamedTuple):
    depth: int
    max_pages: int
    max_bytes: int


class _Crawl:
    """The pages of one start address, those that are near first."""

    def __init__(
        self,
        start: httpx2.URL,
        client: Client,
        robots: Robots,
        publisher: Publisher,
        limits: _Limits,
        report: Report,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.problem = ""
        self._start = start
        self._client = client
        self._robots = robots
        self._publisher = publisher
        self._limits = limits
        self._report = report
        self._sites = {site_of(start)}
        self._seen: set[str] = set()
        self._waiting: list[tuple[int, int, httpx2.URL]] = []

    def run(self, starts: Iterable[httpx2.URL], *, on_progress: Callable[[int], None] | None) -> None:
        """Visit `starts`, the pages that are known, and what they lead to."""
        for url in starts:
            self._wait_for(url, 0, remember=False)
        for identity, page in self._publisher.pages.items():
            if page.depth <= self._limits.depth:
                self._wait_for(httpx2.URL(page.url or identity), page.depth, remember=False)
        others, self._publisher.others = self._publisher.others, {}
        for address, depth in others.items():
            if depth > self._limits.depth or not self._wait_for(httpx2.URL(address), depth):
                self._publisher.others[address] = depth
        for _ in range(self._limits.max_pages):
            if not self._waiting:
                break
            depth, _, url = heapq.heappop(self._waiting)
            self._visit(url, depth)
            self._publisher.flush_when_due()
            if on_progress:
                on_progress(1)
        self._publisher.flush()
        self.counts["over_limit"] += len(self._waiting)

    def from_sitemaps(self) -> Iterator[httpx2.URL]:
        """Give the pages of this site in its sitemaps."""

        def report(url: str, left: LeftAlone) -> None:
            self._leave(url, left)
            if url == str(self._start):
                self.problem = left.message

        sitemaps = [self._start]
        if not is_sitemap(self._start):
            try:
                named = self._robots.sitemaps(self._start)
            except LeftAlone as left:
                report(str(self._start), left)
                return
            targets = [link_target(str(self._start), name) for name in named]
            sitemaps = [target for target in targets if target is not None]
            sitemaps = sitemaps or [self._start.copy_with(raw_path=b"/sitemap.xml")]
        found = 0
        for url in pages_in(
            sitemaps,
            client=self._client,
            may_visit=self._robots.check,
            max_bytes=self._limits.max_bytes,
            report=report,
        ):
            if site_of(url) in self._sites:
                found += 1
                yield url
            else:
                self.counts["off_site"] += 1
        if not found and not self.problem:
            self.problem = "no page of this site is in its sitemaps"

    def _wait_for(self, url: httpx2.URL, depth: int, *, remember: bool = True) -> bool:
        """Visit an address later, if that was not said before; returns False when too many wait already.

        It is to `remember` for the next run, until it gave a page, unless that run finds it by itself.
        """
        identity = identity_of(url)
        if identity in self._seen:
            return True
        if len(self._waiting) >= self._limits.max_pages * WAITING_FACTOR:
            return False
        self._seen.add(identity)
        heapq.heappush(self._waiting, (depth, len(self._seen), url))
        if remember:
            self._publisher.others[str(url)] = depth
        return True

    def _visit(self, url: httpx2.URL, depth: int) -> None:
        is_start = url == self._start

        def may_visit(hop: httpx2.URL) -> float:
            # Where the start address redirects to is the site that was meant.
            if not is_start and site_of(hop) not in self._sites:
                raise LeftAlone("off_site", f"redirects to another site, {site_of(hop)}")
            return self._robots.check(hop)

        try:
            answer = self._client.get(
                url, max_bytes=self._limits.max_bytes, may_visit=may_visit, headers=self._conditions, screen=_screen
            )
            if is_start:
                self._sites.add(site_of(answer.url))
            self._take(url, answer, depth)
            if identity_of(answer.url) == identity_of(url):
                self._publisher.others.pop(str(url), None)
        except LeftAlone as left:
            self._leave(str(url), left)
            if left.kind not in _FOR_A_WHILE:
                self._publisher.others.pop(str(url), None)
            if is_start:
                self.problem = left.message

    def _conditions(self, identity: str) -> dict[str, str]:
        page = self._publisher.pages.get(identity)
        # To follow its links for the first time, the page itself is needed.
        if page is None or (page.depth < self._limits.depth and not page.followed):
            return {}
        return page.conditions()

    def _take(self, url: httpx2.URL, answer: Answer, depth: int) -> None:
        asked, identity = identity_of(url), identity_of(answer.url)
        pages = self._publisher.pages
        if answer.status in (404, 410) and asked in pages:
            self._publisher.missing(asked, at_once=answer.status == 410)
            return
        if answer.moved and asked in pages and asked != identity:
            self._publisher.missing(asked, at_once=False)
        known = pages.get(identity)
        if answer.status not in (200, 304) or (answer.status == 304 and known is None):
            raise LeftAlone("failed", f"answered {answer.status}")
        if asked != identity and identity in self._seen:
            return  # it has its own turn, or had it
        self._seen.add(identity)
        depth = depth if known is None else min(depth, known.depth)
        if answer.status == 304 and known is not None:
            self._publisher.unchanged(identity, replace(known, depth=depth, missing_since=None))
            return
        content_type = _content_type(answer.headers.get("Content-Type"))
        sha256 = hashlib.sha256(answer.content).hexdigest()
        same = known is not None and known.sha256 == sha256
        followed = self._follow(answer, content_type, depth)
        etag, last_modified = validators(answer.headers)
        page = KnownPage(
            sha256=sha256,
            depth=depth,
            etag=etag,
            last_modified=last_modified,
            url=None if str(answer.url) == identity else str(answer.url),
            followed=followed or (known is not None and same and known.followed),
        )
        if same:
            self._publisher.unchanged(identity, page)
        else:
            metadata = {"url": identity} | ({"last_modified": last_modified} if last_modified else {})
            item = SourceItem(SOURCE_TYPE, identity, answer.content, content_type, metadata)
            self._publisher.changed(identity, page, item)

    def _follow(self, answer: Answer, content_type: str | None, depth: int) -> bool:
        """Wait for what a page links to; tells whether nothing of it is forgotten."""
        if depth >= self._limits.depth:
            return False
        targets = links_of(answer.content, answer.url) if "html" in (content_type or "html") else []
        within = [target for target in targets if site_of(target) in self._sites]
        return sum(self._wait_for(target, depth + 1) for target in within) == len(within)

    def _leave(self, url: str, left: LeftAlone) -> None:
        self.counts[left.kind] += 1
        self._report(url, left.message)


def _screen(response: httpx2.Response, start: bytes) -> None:
    content_type = response.headers.get("Content-Type")
    if content_type and not is_readable_type(content_type):
        raise LeftAlone("other_type", f'is "{content_type[:80]}", which is not read')
    if looks_binary(start):
        raise LeftAlone("other_type", "is binary")
    if not start:
        raise LeftAlone("failed", "is empty")


def _content_type(header: str | None) -> str | None:
    """Return the type, with a character set that is not UTF-8; None when the server does not know."""
    said = _CONTENT_TYPE.match((header or "").strip().lower())
    if said is None or said[1] == "application/octet-stream":
        return None
    charset = said[2]
    return said[1] if charset in (None, "utf-8", "utf8") else f"{said[1]}; charset={charset}"
