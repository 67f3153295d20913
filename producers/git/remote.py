"""Repositories on git servers, fetched into memory: one commit deep, and of the files only those that are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from dulwich.objects import parse_tree

from core.errors import MissingError, SourceError
from core.settings import Settings
from producers.git.names import Location
from producers.git.pack import BLOB, COMMIT, TREE, OversizedError, Pack
from producers.git.server import GitServer
from producers.git.transports import RefusedError, TooMuchError
from producers.git.tree import Commit, Entry, Selection, is_object_id, kind_of, read_commit, walk

__all__ = ["GitRepository", "candidates", "entries_of_tree"]

# Files of one fetch; their packs must fit into memory, so a batch that does not is halved.
BATCH_FILES = 256
# How deep to look for a commit that an old server gives only as part of a branch.
DEPTHS = (100, 10_000)
DIGEST_BYTES = 20


class GitRepository:
    """A repository that is reached over https, ssh or git://.

    Servers that can leave out the files' content (partial clone) are asked for the trees of a commit, then for the
    content that is needed. Others send the whole commit, which must fit into PKM_GIT_PACK_BYTES.
    """

    def __init__(self, location: Location, *, settings: Settings) -> None:
        self.name = location.name
        self._settings = settings
        self._server = GitServer(location, settings)
        self._packs: list[Pack] = []
        self._wanted: dict[str, str] = {}
        """What to ask for to get a commit: itself, or the tag that an old server knows it by."""
        self._tip: str | None = None
        self._whole = False

    def close(self) -> None:
        """Close connections."""
        self._server.close()

    def tip(self, ref: str | None, last: str | None = None) -> str:  # noqa: ARG002 - refs are one question
        """Return the commit that `ref` stands for: HEAD by default, a branch, a tag, a whole ref or a commit's id."""
        if ref is not None and is_object_id(ref):
            self._tip = ref
            return ref
        names = candidates(ref)
        refs = self._server.refs(names)
        for name in names:
            if name in refs:
                found = refs[name].decode("ascii", "replace")
                commit_id = refs.get(name + b"^{}", refs[name]).decode("ascii", "replace")
                if not is_object_id(found) or not is_object_id(commit_id):
                    raise SourceError(f'"{self.name}" names its objects in a way that can\'t be read (SHA-256?)')
                self._wanted[commit_id] = found
                self._tip = commit_id
                return commit_id
        raise MissingError(
            f'"{self.name}" has no {"commit yet" if ref is None else f"branch or tag {ref}"}: name one with --ref'
        )

    def commit(self, commit_id: str) -> Commit:
        """Fetch a commit and its trees. Raises MissingError when the repository has none of this id."""
        if not self._has(commit_id):
            try:
                self._packs.append(
                    self._server.fetch([self._wanted.get(commit_id, commit_id)], depth=1, without_blobs=True)
                )
            except RefusedError as refusal:
                self._look_deeper(commit_id, refusal)
        kind, content = self._read(commit_id)
        if kind != COMMIT:
            raise MissingError(f'"{self.name}" has an object {commit_id}, but it is no commit')
        return read_commit(commit_id, content)

    def entries(self, commit: Commit, selection: Selection) -> Iterator[Entry]:
        """Give what is in the commit's tree."""
        return walk(commit.tree, self._tree, selection=selection, most=self._settings.git_files)

    def contents(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        """Give the files' content, fetched many at a time."""
        remaining = iter(entries)
        while batch := list(islice(remaining, BATCH_FILES)):
            yield from self._batch(batch)

    def _batch(self, batch: list[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        missing = list(dict.fromkeys(entry.id for entry in batch if not self._has(entry.id)))
        packs = self._packs
        if missing and not self._whole:
            try:
                packs = [self._server.fetch(missing), *self._packs]
            except TooMuchError:
                if len(batch) > 1:
                    # One after the other, so that one pack is in memory.
                    half = len(batch) // 2
                    yield from self._batch(batch[:half])
                    yield from self._batch(batch[half:])
                    return
            except RefusedError as refusal:
                # Some servers leave content out, but then don't give it one by one.
                if self._tip is None or not refusal.unknown:
                    raise
                self._whole = True
                self._packs.append(self._server.fetch([self._wanted.get(self._tip, self._tip)], depth=1))
        for entry in batch:
            yield entry, self._content(packs, entry.id)

    def _content(self, packs: Sequence[Pack], object_id: str) -> bytes | None:
        try:
            kind, content = _read(packs, object_id)
        except (KeyError, OversizedError):
            # What is not there was too large to be taken, or hangs as a delta on what was.
            return None
        if kind != BLOB:
            raise SourceError(f'"{self.name}" is damaged: object {object_id} should be a file')
        return content if len(content) <= self._settings.max_object_bytes else None

    def _look_deeper(self, commit_id: str, refusal: RefusedError) -> None:
        """Fetch more of the history, since the server gives no commit by its id alone."""
        if refusal.unknown is False and self._tip in {None, commit_id}:
            raise refusal
        if self._tip is not None and self._tip != commit_id:
            for depth in DEPTHS:
                pack = self._server.fetch([self._wanted.get(self._tip, self._tip)], depth=depth, without_blobs=True)
                if _has([pack], commit_id):
                    self._packs.append(pack)
                    return
        raise MissingError(f'"{self.name}" has no commit {commit_id}') from refusal

    def _tree(self, object_id: str) -> list[Entry]:
        return entries_of_tree(self.name, object_id, *self._read(object_id))

    def _read(self, object_id: str) -> tuple[int, bytes]:
        try:
            return _read(self._packs, object_id)
        except (KeyError, OversizedError) as error:
            raise SourceError(
                f'"{self.name}" did not give object {object_id}, or it is too large to be a folder'
            ) from error

    def _has(self, object_id: str) -> bool:
        return _has(self._packs, object_id)


def entries_of_tree(repository: str, object_id: str, kind: int, content: bytes) -> list[Entry]:
    """Read a tree object; raises SourceError when it is none."""
    if kind != TREE:
        raise SourceError(f'"{repository}" is damaged: object {object_id} should be a folder')
    try:
        return [
            Entry(name.decode("utf-8", "backslashreplace"), kind_of(mode), bytes(found).decode())
            for name, mode, found in parse_tree(content, DIGEST_BYTES)
        ]
    except Exception as error:
        raise SourceError(f'"{repository}" is damaged: folder {object_id} can\'t be read') from error


def candidates(ref: str | None) -> list[bytes]:
    """Return the names that a ref may have in a repository, the likeliest first."""
    if ref is None:
        return [b"HEAD"]
    name = ref.encode()
    return [name, b"refs/heads/" + name, b"refs/tags/" + name]


def _read(packs: Sequence[Pack], object_id: str) -> tuple[int, bytes]:
    for pack in packs:
        try:
            return pack.read(object_id)
        except KeyError:
            continue
    raise KeyError(object_id)


def _has(packs: Sequence[Pack], object_id: str) -> bool:
    return any(pack.has(object_id) for pack in packs)
