"""What a run found, on its way to the stream, and the cursor behind it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from core.settings import Settings
from producers.announce import SourceItem, announce, announce_deletions
from producers.cursors import load_cursor, save_cursor
from producers.web.known import KnownPage, known_pages, remembered

__all__ = ["Publisher"]

SOURCE_TYPE = "web"
# Pages are announced, and the cursor moved, when one of these is reached.
FLUSH_PAGES = 50
FLUSH_BYTES = 8 * 1024 * 1024
FLUSH_SECONDS = 15.0


class Publisher:
    """The `pages` that are known from one start address, and those of them that are to be announced.

    `others` are addresses that gave no page of their own the last time (they failed, redirected or had no turn), with
    their distance from the start: the page that links to them may not have changed when they do.

    The cursor moves after what it tells is announced. What is written to it is also what a deletion is made of, so a
    run that repeats a deletion announces the same event.
    """

    def __init__(
        self, settings: Settings, *, name: str, now: Callable[[], datetime], from_start: bool = False
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.by_content_type: Counter[str] = Counter()
        self._settings = settings
        self._now = now
        self._cursor = load_cursor(settings, kind=SOURCE_TYPE, name=name)
        value = {} if from_start else self._cursor.value
        self.pages = known_pages(value)
        self.others: dict[str, int] = dict(value.get("others", {}))
        self._items: list[SourceItem] = []
        self._size = 0
        self._gone: set[str] = set()
        self._flushed_at = time.monotonic()

    def changed(self, identity: str, page: KnownPage, item: SourceItem) -> None:
        """Take a page that is new or has other content than before."""
        self.pages[identity] = page
        self._items.append(item)
        self._size += len(item.content)

    def unchanged(self, identity: str, page: KnownPage) -> None:
        """Take a page whose content is what was announced."""
        self.counts["unchanged"] += 1
        self.pages[identity] = page

    def missing(self, identity: str, *, at_once: bool) -> None:
        """Take a known page that its server does not have: it is deleted if so `at_once`, or missing before."""
        page = self.pages[identity]
        if page.missing_since is not None or at_once:
            self._gone.add(identity)
        else:
            self.counts["missing"] += 1
        self.pages[identity] = replace(page, missing_since=page.missing_since or self._now())

    def flush_when_due(self) -> None:
        """Do `flush` when much has been taken, or when something has waited for long."""
        waited = time.monotonic() - self._flushed_at
        if not self._items and not self._gone:
            self._flushed_at = time.monotonic()
        elif len(self._items) >= FLUSH_PAGES or self._size >= FLUSH_BYTES or waited >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Announce what has been taken, then move the cursor. Raises what `announce` and `save_cursor` raise."""
        if self._items:
            summary = announce(self._items, settings=self._settings)
            self.counts.update(
                announced=summary.announced,
                uploaded=summary.uploaded,
                already_there=summary.already_there,
                content_bytes=summary.content_bytes,
            )
            self.by_content_type.update(summary.by_content_type)
        self._save()
        by_time: defaultdict[datetime | None, list[str]] = defaultdict(list)
        for identity in sorted(self._gone):
            by_time[self.pages[identity].missing_since].append(identity)
        for at, identities in by_time.items():
            announce_deletions(identities, source_type=SOURCE_TYPE, settings=self._settings, at=at)
            self.counts["deleted"] += len(identities)
        for identity in self._gone:
            del self.pages[identity]
        self._save()
        self._items, self._size, self._gone = [], 0, set()
        self._flushed_at = time.monotonic()

    def _save(self) -> None:
        value = remembered(self.pages, self.others)
        if value != self._cursor.value:
            self._cursor = save_cursor(self._settings, self._cursor, value)
