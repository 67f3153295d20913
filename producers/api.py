"""Items of a JSON API as notes, page by page; the cursor moves when everything before it is announced.

An item's identity is the API's address (without its query), or a name that is given, and its id there. Its content is
the text at a path, or the item itself as JSON with sorted keys, so that the same item is the same version.

A walk through the pages that was interrupted goes on at the page where it stopped. A walk that came to its end begins
at the first page again the next time: with the largest value of `cursor` so far as a parameter, if the API takes one;
or, for a feed, at the last page.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
from jsonpath import JSONPathEnvironment, JSONPathError

from core.errors import PkmError, SettingsError, UnreachableError, reason
from core.settings import Settings
from core.visible import visible
from producers.addresses import check_url
from producers.announce import announce
from producers.api_pages import ApiPages, Page
from producers.cursors import load_cursor, save_cursor
from producers.items import LeftAlone, SourceItem, Summary

__all__ = ["ApiSource", "Polled", "poll"]

SOURCE_TYPE = "api"
CURSOR = "api"
# Pages are announced together, and the cursor saved, when there are so many items, or after so long.
GROUP_ITEMS = 500
GROUP_SECONDS = 2.0

# RFC 9535, without the library's own additions.
_PATHS = JSONPathEnvironment(strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSource:
    """Where the items of an API are.

    Paths are JSONPath (RFC 9535): `items` and `next` within a page, the others within an item.

    | the API's pages | options |
    |---|---|
    | name the next one in a Link header | none |
    | hold its address | `next="$.links.next"` |
    | hold a token | `next="$.meta.cursor", next_parameter="cursor"` |
    | are numbered | `page_parameter="page"` |

    Raises SettingsError for a path that is none, and for options that exclude each other.
    """

    url: str
    items: str
    id: str
    content: str | None = None
    content_type: str | None = None
    name: str | None = None
    next: str | None = None
    next_parameter: str | None = None
    page_parameter: str | None = None
    cursor: str | None = None
    cursor_parameter: str | None = None
    feed: bool = False

    def __post_init__(self) -> None:
        for path in (self.items, self.id, self.content, self.next, self.cursor):
            if path is not None:
                _compiled(path)
        if self.next_parameter and not self.next:
            raise SettingsError("--next-param needs --next, the path of what it takes")
        if self.page_parameter and (self.next or self.feed):
            raise SettingsError("--page-param counts pages: leave --next and --feed out")
        if bool(self.cursor) != bool(self.cursor_parameter):
            raise SettingsError("--cursor and --cursor-param belong together: what is kept, and where it is sent")

    @property
    def identity(self) -> str:
        """What the identities of all items begin with."""
        return self.name or str(check_url(self.url).copy_with(query=None, fragment=None))

    @property
    def cursor_name(self) -> str:
        """Names the cursor. Another query is another source; it may hold a key, so only its digest is kept."""
        query = hashlib.sha256(check_url(self.url).query).hexdigest()[:16]
        return f"{self.identity}\nquery {query}\nitems {self.items}"


@dataclass(frozen=True, slots=True)
class Polled(Summary):
    """What a run did; `complete` unless it ended at its limit of pages."""

    pages: int = 0
    complete: bool = True


def poll(
    source: ApiSource,
    *,
    settings: Settings,
    max_pages: int = 10_000,
    from_start: bool = False,
    on_progress: Callable[[int], None] | None = None,
    on_left_alone: LeftAlone,
    pause: Callable[[float], None] = time.sleep,
) -> Polled:
    """Announce the items of `source` from where the last run ended, at most `max_pages` pages of them.

    Left alone, with the reason given to `on_left_alone(item, reason)`: items without an id or content, and those
    above `settings.max_object_bytes`.

    Raises what `ApiPages` and `announce` raise, and FencedError when another run over the same source was faster;
    what came before is announced, and the same run once more goes on there.
    """
    cursor = load_cursor(settings, kind=CURSOR, name=source.cursor_name)
    walk = _Walk(source, {} if from_start else cursor.value, settings=settings, on_left_alone=on_left_alone)
    total = Summary()
    with ApiPages(source.url, settings=settings, pause=pause) as pages:
        failure: PkmError | None = None
        while failure is None and not walk.ended and walk.pages < max_pages:
            group, failure = _group(walk, pages, max_pages)
            total += announce(group, settings=settings, on_progress=on_progress)
            cursor = save_cursor(settings, cursor, walk.state())
        if failure is not None:
            raise failure
    return Polled(
        total.announced,
        total.uploaded,
        total.already_there,
        total.content_bytes,
        total.by_content_type,
        walk.left_alone,
        walk.pages,
        walk.ended,
    )


def _group(walk: _Walk, pages: ApiPages, max_pages: int) -> tuple[list[SourceItem], PkmError | None]:
    """Read pages that are worth announcing together; and what ended them, when it was a fault."""
    group: list[SourceItem] = []
    began = time.monotonic()
    try:
        while not walk.ended and walk.pages < max_pages:
            group.extend(walk.step(pages))
            if len(group) >= GROUP_ITEMS or time.monotonic() - began >= GROUP_SECONDS:
                break
    except PkmError as error:
        return group, error
    return group, None


class _Walk:
    """A way through the pages: where it is, and what of it the cursor keeps."""

    def __init__(
        self, source: ApiSource, state: Mapping[str, Any], *, settings: Settings, on_left_alone: LeftAlone
    ) -> None:
        self._source = source
        self._settings = settings
        self._on_left_alone = on_left_alone
        self._mark = state.get("mark")
        self._highest = state.get("highest", self._mark)
        place = state.get("place")
        self._first = self._first_url()
        self._at = self._first if place is None else httpx2.URL(place)
        self._seen: set[str] = set()
        self.pages = self.left_alone = 0
        self.ended = False

    def step(self, pages: ApiPages) -> Iterator[SourceItem]:
        """Get the page where the walk is, give its items, and move on."""
        self._seen.add(str(self._at))
        page = pages.get(self._at)
        self.pages += 1
        found = _find(self._source.items, page.value)
        for number, item in enumerate(found, start=1):
            made = self._item(item, f"item {number} of page {self.pages}")
            if made is not None:
                yield made
        following = self._following(page) if found else None
        if following is None:
            self.ended = True
        elif str(following) in self._seen:
            raise UnreachableError(f"{self._source.identity} leads to the same page again: check --next")
        else:
            self._at = following

    def state(self) -> dict[str, Any]:
        """What the next run needs: the place of a walk that goes on; of one that ended, how far it came."""
        if not self.ended:
            return {"place": str(self._at), "mark": self._mark, "highest": self._highest}
        # Pages may begin with the newest, so only the whole walk tells that nothing lies below the highest.
        return {"mark": self._highest, **({"place": str(self._at)} if self._source.feed else {})}

    def _first_url(self) -> httpx2.URL:
        url = check_url(self._source.url)
        if self._source.page_parameter and self._source.page_parameter not in url.params:
            url = url.copy_set_param(self._source.page_parameter, 1)
        if self._source.cursor_parameter and self._mark is not None:
            url = url.copy_set_param(self._source.cursor_parameter, self._mark)
        return url

    def _following(self, page: Page) -> httpx2.URL | None:
        source = self._source
        if source.page_parameter:
            number = self._at.params.get(source.page_parameter, "")
            if not (number.isascii() and number.isdecimal()):
                raise SettingsError(f'"{source.page_parameter}" in the address is not the number of a page')
            return self._at.copy_set_param(source.page_parameter, int(number) + 1)
        if source.next is None:
            return page.next_url
        value = next(iter(_find(source.next, page.value)), None)
        if value in (None, "", False):
            return None
        if not isinstance(value, str | int):
            raise UnreachableError(f"{source.identity} has no address or token at {source.next}")
        if source.next_parameter:
            return self._first.copy_set_param(source.next_parameter, value)
        try:
            return self._at.join(str(value))
        except httpx2.InvalidURL as error:
            raise UnreachableError(f"{source.identity} has no address at {source.next}: {reason(error)}") from error

    def _item(self, item: Any, name: str) -> SourceItem | None:
        source = self._source
        identifier = next(iter(_find(source.id, item)), None)
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
            return self._left(name, f"has no id at {source.id}")
        content = item if source.content is None else next(iter(_find(source.content, item)), None)
        if content is None:
            return self._left(name, f"has no content at {source.content}")
        is_text = isinstance(content, str)
        try:
            body = content.encode() if is_text else orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        except (UnicodeEncodeError, orjson.JSONEncodeError) as error:
            return self._left(name, f"can't be written: {reason(error)}")
        if len(body) > self._settings.max_object_bytes:
            return self._left(
                name, f"is larger than {self._settings.max_object_bytes:,} bytes (PKM_MAX_OBJECT_BYTES)"
            )
        self._raise_mark(item)
        kind = source.content_type if is_text else "application/json"
        metadata = {"api": source.identity, "id": str(identifier)}
        return SourceItem(SOURCE_TYPE, f"{source.identity}#{identifier}", body, kind, metadata)

    def _raise_mark(self, item: Any) -> None:
        if self._source.cursor is None:
            return
        for value in _find(self._source.cursor, item):
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                continue
            if self._highest is None or (_comparable(value, self._highest) and value > self._highest):
                self._highest = value

    def _left(self, name: str, why: str) -> SourceItem | None:
        self.left_alone += 1
        self._on_left_alone(name, why)
        return None


def _comparable(one: object, other: object) -> bool:
    return isinstance(one, str) == isinstance(other, str)


def _compiled(path: str) -> Any:
    try:
        return _PATHS.compile(path)
    except JSONPathError as error:
        raise SettingsError(
            f'"{visible(path)}" is no JSONPath ({reason(error)}): write it as $.data.items[*] (RFC 9535)'
        ) from error


def _find(path: str, value: Any) -> list[Any]:
    try:
        return list(_compiled(path).findall(value))
    except (JSONPathError, RecursionError) as error:
        raise UnreachableError(f"a page can't be searched for {path}: {reason(error)}") from error
