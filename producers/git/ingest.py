"""Sends what changed in a repository since it was last looked at, whichever way the repository is reached.

What was sent is remembered as the path and object id of every file, in the cursor of the repository: a run compares
trees, never histories, so it makes no difference whether a branch was extended, reset or replaced.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import structlog

from core.errors import MissingError, SourceError
from core.settings import Settings
from producers.announce import SourceItem, Summary, announce, announce_deletions
from producers.content_types import content_type_of
from producers.cursors import load_cursor, save_cursor
from producers.git.tree import Commit, Entry, Selection, chosen, is_object_id, left_alone

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = ["Repository", "RepositorySummary", "ingest"]

SOURCE_TYPE = "git"
CURSOR = "git"
TOO_LARGE = "larger than PKM_MAX_OBJECT_BYTES"
# What a damaged cursor may inflate to; 200,000 paths take a tenth of it.
LARGEST_MAP_BYTES = 512 * 1024 * 1024


class Repository(Protocol):
    """A way to a repository. All raise UnreachableError, SourceError and MissingError for a ref that is not there."""

    @property
    def name(self) -> str:
        """The repository's name in the identity of its notes."""

    def tip(self, ref: str | None, last: str | None = None) -> str:
        """Return the id of the commit that `ref` (default: the repository's own default branch) stands for.

        `last` is what it stood for when it was looked at last, which some can be asked about.
        """

    def commit(self, commit_id: str) -> Commit:
        """Read a commit; raises MissingError when the repository has none of this id."""

    def entries(self, commit: Commit, selection: Selection) -> Iterator[Entry]:
        """Give what the commit's tree holds, as far as it may be wanted, in a stable order."""

    def contents(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        """Give the files' content in order, a bounded amount in memory; None for what is larger than it may be."""


@dataclass(frozen=True, slots=True)
class RepositorySummary:
    """What a run did with one repository; `left_alone` counts by reason what was not looked at, or is no text."""

    repository: str
    commit: str
    since: str | None
    compared: str
    announced: int = 0
    deleted: int = 0
    unchanged: int = 0
    uploaded: int = 0
    already_there: int = 0
    content_bytes: int = 0
    by_content_type: Mapping[str, int] = field(default_factory=dict)
    left_alone: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was sent (path and object id), and what was looked at but is no text, up to a commit."""

    commit: str | None = None
    sent: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    max_object_bytes: int | None = None
    damaged: bool = False


def ingest(
    repository: Repository,
    *,
    settings: Settings,
    ref: str | None = None,
    globs: Sequence[str] = (),
    since: str | None = None,
    from_start: bool = False,
    on_progress: Callable[[int], None] | None = None,
    client: KinesisClient | None = None,
) -> RepositorySummary:
    """Send the documents of `ref` that are new or changed since the last run, and announce those that are gone.

    The last run is that over the same repository, ref and globs; `since`, a commit's whole id, takes its place, and
    `from_start` announces everything once more. A rename is a deletion and a new note. Delivery is at least once with
    the same event ids, deletions being dated by the commit: the cursor moves only when everything is announced, so a
    run that failed is repeated by the next.

    Raises like `announce`, FencedError when another run over the same was faster, and what `repository` raises.
    """
    if since is not None and not is_object_id(since):
        raise SourceError(f'"{since}" is not a commit: give all 40 hex digits of its id')
    selection = Selection(globs)
    cursor = load_cursor(settings, kind=CURSOR, name=_cursor_name(repository.name, ref, selection))
    last = _unpacked(cursor.value)
    tip = repository.tip(ref, last.commit)
    asked = since is not None or from_start
    if not asked and tip == last.commit and last.max_object_bytes == settings.max_object_bytes:
        return RepositorySummary(
            repository.name, tip, last.commit, "nothing new since the last run", unchanged=len(last.sent)
        )
    if from_start:
        # What is gone is deleted even so. No object has the id "".
        last = _Known(sent=dict.fromkeys(last.sent, ""))
    known, compared = _base(repository, since, last, selection)
    commit = repository.commit(tip)
    left: Counter[str] = Counter()
    files = chosen(repository.entries(commit, selection), selection=selection, left=left)
    others = known.others if known.max_object_bytes == settings.max_object_bytes else {}
    run = _Run(repository, commit, files, known.sent, others, left)
    announced = announce(run.items(), settings=settings, on_progress=on_progress, client=client)
    gone = sorted(path for path in known.sent if path not in run.sent)
    deleted = announce_deletions(
        [_identity(repository.name, path) for path in gone],
        source_type=SOURCE_TYPE,
        settings=settings,
        at=commit.committed_at,
        on_progress=on_progress,
        client=client,
    )
    save_cursor(settings, cursor, _packed(tip, run.sent, run.others, settings.max_object_bytes))
    return _summary(repository.name, commit, known, compared, announced, deleted, run)


class _Run:
    """Compares the files of a commit with what is known, and remembers what becomes of each."""

    def __init__(
        self,
        repository: Repository,
        commit: Commit,
        files: Mapping[str, Entry],
        sent: Mapping[str, str],
        others: Mapping[str, str],
        left: Counter[str],
    ) -> None:
        self._repository, self._commit, self.left = repository, commit, left
        self.sent = {path: entry.id for path, entry in files.items() if sent.get(path) == entry.id}
        self.unchanged = len(self.sent)
        self.others = {path: entry.id for path, entry in files.items() if others.get(path) == entry.id}
        left["as before"] += len(self.others)
        self._changed = [entry for path, entry in files.items() if path not in self.sent and path not in self.others]

    def items(self) -> Iterator[SourceItem]:
        """Give the documents that are new or changed."""
        repository, commit = self._repository.name, self._commit
        for entry, content in self._repository.contents(self._changed):
            reason = TOO_LARGE if content is None else left_alone(content)
            if content is None or reason:
                self.left[reason or TOO_LARGE] += 1
                self.others[entry.path] = entry.id
                continue
            self.sent[entry.path] = entry.id
            yield SourceItem(
                SOURCE_TYPE,
                _identity(repository, entry.path),
                content,
                content_type_of(entry.path),
                {
                    "path": entry.path,
                    "repo": repository,
                    "commit": commit.id,
                    "blob": entry.id,
                    "author_time": commit.authored_at.isoformat(),
                },
            )


def _base(repository: Repository, since: str | None, last: _Known, selection: Selection) -> tuple[_Known, str]:
    """Return what to compare with, and say in words what it is."""
    if since is not None:
        try:
            commit = repository.commit(since)
            files = chosen(repository.entries(commit, selection), selection=selection, left=Counter())
            # What the last run sent is not forgotten: it is deleted if it is gone, and sent again unless that commit
            # has the same version of it. No object has the id "".
            sent = dict.fromkeys(last.sent, "")
            for path, entry in files.items():
                sent[path] = entry.id if last.sent.get(path, entry.id) == entry.id else ""
            return _Known(since, sent), "with the commit of --since"
        except MissingError:
            structlog.get_logger(module=__name__).warning(
                "the repository has no such commit; comparing with the last run", commit=since, repo=repository.name
            )
    if last.commit is not None:
        return last, "with the last run" if since is None else "with the last run: the commit of --since is unknown"
    if last.damaged:
        return last, "with nothing: what the last run sent can't be read"
    return (
        last,
        "with nothing: everything is new" if since is None else "with nothing: the commit of --since is unknown",
    )


def _summary(
    repository: str, commit: Commit, known: _Known, compared: str, announced: Summary, deleted: Summary, run: _Run
) -> RepositorySummary:
    return RepositorySummary(
        repository=repository,
        commit=commit.id,
        since=known.commit,
        compared=compared,
        announced=announced.announced,
        deleted=deleted.announced,
        unchanged=run.unchanged,
        uploaded=announced.uploaded,
        already_there=announced.already_there,
        content_bytes=announced.content_bytes,
        by_content_type=announced.by_content_type,
        left_alone={reason: count for reason, count in sorted(run.left.items()) if count},
    )


def _identity(repository: str, path: str) -> str:
    # What the flow makes of a record's `repo` and `path` when it has no note id.
    return f"{repository}/{path}"


def _cursor_name(repository: str, ref: str | None, selection: Selection) -> str:
    return "\n".join([repository, f"ref {ref or 'HEAD'}", *(f"path {glob}" for glob in selection.globs)])


def _packed(commit: str, sent: Mapping[str, str], others: Mapping[str, str], max_object_bytes: int) -> dict[str, Any]:
    return {
        "commit": commit,
        "sent": _deflated(sent),
        "others": _deflated(others),
        "max_object_bytes": max_object_bytes,
    }


def _unpacked(value: Mapping[str, Any]) -> _Known:
    if not value:
        return _Known()
    try:
        return _Known(
            str(value["commit"]),
            _inflated(value["sent"]),
            _inflated(value["others"]),
            int(value["max_object_bytes"]),
        )
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error):
        return _Known(damaged=True)


def _deflated(paths: Mapping[str, str]) -> str:
    return base64.b64encode(zlib.compress(orjson.dumps(paths, option=orjson.OPT_SORT_KEYS))).decode()


def _inflated(text: str) -> dict[str, str]:
    inflater = zlib.decompressobj()
    content = inflater.decompress(base64.b64decode(text, validate=True), LARGEST_MAP_BYTES)
    if not inflater.eof:
        raise ValueError("is not whole, or too large")
    paths = orjson.loads(content)
    if not isinstance(paths, dict):
        raise ValueError("is no map of paths")
    return paths
