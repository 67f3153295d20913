"""Repositories of GitHub through its REST API, where git itself can't be used; a request for each changed file."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from core.errors import MissingError, SourceError
from core.settings import Settings
from producers.git.github_calls import GitHubCalls, LargeAnswerError
from producers.git.names import github_name
from producers.git.tree import Commit, Entry, Selection, is_object_id, kind_of, time_of, walk

__all__ = ["GitHubRepository", "owned_repositories"]

_MODE = re.compile(r"[0-7]{6}")
RAW = "application/vnd.github.raw+json"
COMMIT_ID = "application/vnd.github.sha"
LONGEST_ID_BYTES = 1_024


class GitHubRepository:
    """The repository `OWNER/NAME`. It has the name that it has over git, in GitHub's own spelling."""

    def __init__(
        self,
        path: str,
        *,
        settings: Settings,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._calls = GitHubCalls(settings, pause=pause, clock=clock)
        try:
            about = self._calls.get(f"repos/{quote(path)}").json()
            full_name, self._branch = _text(about, "full_name"), _text(about, "default_branch")
        except BaseException:
            self._calls.close()
            raise
        self.name = github_name(settings, full_name)
        self._root = f"repos/{quote(full_name)}"

    def close(self) -> None:
        """Close connections."""
        self._calls.close()

    def tip(self, ref: str | None, last: str | None = None) -> str:
        """Return the commit that a branch, tag or commit stands for, by default the default branch.

        The API is asked whether it is still `last`: the answer that it is does not count against the rate limit.
        """
        answer = self._calls.get(
            f"{self._root}/commits/{quote(ref or self._branch)}",
            accept=COMMIT_ID,
            etag=None if last is None else f'"{last}"',
            most_bytes=LONGEST_ID_BYTES,
        )
        if answer.status == 304 and last is not None:
            return last
        found = answer.body.decode("ascii", "replace").strip()
        if not is_object_id(found):
            raise SourceError("the GitHub API names a commit in a way that can't be read: is PKM_GITHUB_URL right?")
        return found

    def commit(self, commit_id: str) -> Commit:
        """Read a commit. Raises MissingError when the repository has none of this id."""
        found = self._calls.get(f"{self._root}/git/commits/{commit_id}").json()
        tree = _text(_part(found, "tree"), "sha")
        if not is_object_id(tree):
            raise SourceError(f"the GitHub API names no tree of commit {commit_id}")
        return Commit(commit_id, tree, _time(found, "author"), _time(found, "committer"))

    def entries(self, commit: Commit, selection: Selection) -> Iterator[Entry]:
        """Give what is in the commit's tree: in one request, or folder by folder when it is too large for that."""
        listing = self._tree(commit.tree, recursive=True)
        if listing is None:
            return walk(commit.tree, self._folder, selection=selection, most=self._settings.git_files)
        folders: dict[str, list[Entry]] = {commit.tree: []}
        ids = {"": commit.tree}
        for entry in listing:
            parent, _, name = entry.path.rpartition("/")
            if entry.kind == "folder":
                ids[entry.path] = entry.id
                # The same folder may stand in several places, and its entries are listed at each.
                folders[entry.id] = []
            folder = folders.setdefault(ids.get(parent, ""), [])
            folder.append(Entry(name, entry.kind, entry.id, entry.size_bytes))
        return walk(
            commit.tree,
            lambda object_id: folders.get(object_id, []),
            selection=selection,
            most=self._settings.git_files,
        )

    def contents(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        """Give the files' content, one request each; none for a file that the tree says is too large."""
        most = self._settings.max_object_bytes
        for entry in entries:
            if entry.size_bytes is not None and entry.size_bytes > most:
                yield entry, None
                continue
            try:
                content = self._calls.get(f"{self._root}/git/blobs/{entry.id}", accept=RAW, most_bytes=most).body
            except LargeAnswerError:
                yield entry, None
                continue
            digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
            digest.update(content)
            if digest.hexdigest() != entry.id:
                raise SourceError(f"the GitHub API gave another content than that of {entry.id}: try again")
            yield entry, content

    def _folder(self, tree_id: str) -> list[Entry]:
        listing = self._tree(tree_id, recursive=False)
        if listing is None:
            raise SourceError(
                f"a folder of {self.name} has more files than the GitHub API lists: use its git address instead"
            )
        return listing

    def _tree(self, tree_id: str, *, recursive: bool) -> list[Entry] | None:
        """Return what a tree holds, by paths below it; None when the API does not list all of it."""
        path = f"{self._root}/git/trees/{tree_id}" + ("?recursive=1" if recursive else "")
        try:
            found = self._calls.get(path).json()
        except LargeAnswerError:
            return None
        if not isinstance(found, dict) or not isinstance(found.get("tree"), list):
            raise SourceError(f"the GitHub API gives no tree for {tree_id}")
        return None if found.get("truncated") else [_entry(item) for item in found["tree"]]


def owned_repositories(
    owner: str,
    *,
    settings: Settings,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> list[str]:
    """Return the repositories of a user or an organisation as `OWNER/NAME`, without forks and archived ones.

    Raises what requests raise, and MissingError when there are none.
    """
    calls = GitHubCalls(settings, pause=pause, clock=clock)
    try:
        try:
            listed = list(calls.pages(f"orgs/{quote(owner)}/repos?per_page=100&sort=full_name"))
        except MissingError:
            listed = list(calls.pages(f"users/{quote(owner)}/repos?per_page=100&sort=full_name"))
    finally:
        calls.close()
    found = [
        _text(item, "full_name")
        for item in listed
        if isinstance(item, dict) and not item.get("fork") and not item.get("archived")
    ]
    if not found:
        raise MissingError(
            f'"github:{owner}" has no repository that can be read: a private one needs PKM_GITHUB_TOKEN'
        )
    return found


def _entry(item: Any) -> Entry:
    mode, object_id, size = _text(item, "mode"), _text(item, "sha"), item.get("size")
    if not _MODE.fullmatch(mode) or not is_object_id(object_id):
        raise SourceError("the GitHub API gives a tree with entries that can't be read")
    return Entry(_text(item, "path"), kind_of(int(mode, 8)), object_id, size if isinstance(size, int) else None)


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(value: Any, name: str) -> str:
    text = _part(value, name)
    if not isinstance(text, str) or not text:
        raise SourceError(f'the GitHub API answers without "{name}": is PKM_GITHUB_URL right?')
    return text


def _time(value: Any, who: str) -> datetime:
    try:
        time_told = datetime.fromisoformat(_text(_part(value, who), "date"))
        return time_told.astimezone(UTC) if time_told.tzinfo else time_told.replace(tzinfo=UTC)
    except (SourceError, ValueError, OverflowError):
        return time_of(0)
