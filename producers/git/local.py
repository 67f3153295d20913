"""Repositories on this machine, read as they lie there: no git program, no checkout, nothing written."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from dulwich.errors import NotGitRepository
from dulwich.object_store import DiskObjectStore
from dulwich.objects import RawObjectID
from dulwich.pack import Pack as PackFile
from dulwich.refs import Ref
from dulwich.repo import Repo

from core.errors import MissingError, SourceError, reason
from core.settings import Settings
from producers.git.names import Location
from producers.git.pack import BLOB, COMMIT, TAG, TREE, OversizedError, Pack
from producers.git.remote import candidates, entries_of_tree
from producers.git.server import LARGEST_TREE_BYTES
from producers.git.tree import Commit, Entry, Selection, is_object_id, read_commit, walk

__all__ = ["LocalRepository"]

KINDS = {b"commit": COMMIT, b"tree": TREE, b"blob": BLOB, b"tag": TAG}
LONGEST_HEADER = 32
LONGEST_TAG_CHAIN = 8


class LocalRepository:
    """A repository in a folder, bare or with a working tree; only what is committed counts.

    Raises MissingError when there is none.
    """

    def __init__(self, location: Location, *, settings: Settings) -> None:
        self.name = location.name
        self._settings = settings
        # Trees and commits must not be held to a limit that was meant for documents.
        self._most = max(settings.max_object_bytes, LARGEST_TREE_BYTES)
        self._stack = ExitStack()
        try:
            self._repo = self._stack.enter_context(Repo(location.path))
            store = self._repo.object_store
            self._stores = [
                each for each in (store, *getattr(store, "alternates", ())) if isinstance(each, DiskObjectStore)
            ]
            self._packs = [self._pack(pack) for each in self._stores for pack in each.packs]
        except NotGitRepository:
            raise MissingError(f'there is no git repository in "{self.name}"') from None
        except Exception as error:
            # The library says in many ways what it makes of a folder that somebody prepared.
            self._stack.close()
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Close the files that are open."""
        self._stack.close()

    def tip(self, ref: str | None, last: str | None = None) -> str:  # noqa: ARG002 - looking costs nothing
        """Return the commit that `ref` stands for: HEAD by default, a branch, a tag, a whole ref or a commit's id."""
        found = ref if ref is not None and is_object_id(ref) else None
        for name in () if found else candidates(ref):
            try:
                found = bytes(self._repo.refs[Ref(name)]).decode("ascii", "replace")
                break
            except KeyError:
                continue
            except Exception as error:
                raise self._unreadable(error) from error
        if found is None or not is_object_id(found):
            missing = "commit yet" if ref is None else f"branch or tag {ref}"
            raise MissingError(f'"{self.name}" has no {missing}: name one with --ref')
        for _ in range(LONGEST_TAG_CHAIN):
            kind, content = self._read_whole(found)
            if kind != TAG:
                break
            found = content.partition(b"\n")[0].decode("ascii", "replace").removeprefix("object ")
        return found

    def commit(self, commit_id: str) -> Commit:
        """Read a commit. Raises MissingError when the repository has none of this id."""
        kind, content = self._read_whole(commit_id)
        if kind != COMMIT:
            raise MissingError(f'"{self.name}" has an object {commit_id}, but it is no commit')
        return read_commit(commit_id, content)

    def entries(self, commit: Commit, selection: Selection) -> Iterator[Entry]:
        """Give what is in the commit's tree."""

        def tree(object_id: str) -> list[Entry]:
            return entries_of_tree(self.name, object_id, *self._read_whole(object_id))

        return walk(commit.tree, tree, selection=selection, most=self._settings.git_files)

    def contents(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
        """Give the files' content, one in memory at a time."""
        for entry in entries:
            try:
                kind, content = self._read(entry.id)
            except OversizedError:
                yield entry, None
                continue
            if kind != BLOB:
                raise SourceError(f'"{self.name}" is damaged: object {entry.id} should be a file')
            yield entry, content if len(content) <= self._settings.max_object_bytes else None

    def _read_whole(self, object_id: str) -> tuple[int, bytes]:
        """Read what is no file, and so is never too large."""
        try:
            return self._read(object_id)
        except OversizedError:
            raise SourceError(
                f'"{self.name}" is damaged: {object_id} is too large to be a folder or commit'
            ) from None

    def _read(self, object_id: str) -> tuple[int, bytes]:
        if is_object_id(object_id):
            for pack in self._packs:
                if pack.has(object_id):
                    try:
                        return pack.read(object_id)
                    except KeyError as error:
                        raise SourceError(f'a pack in "{self.name}" is damaged, or not whole') from error
            for store in self._stores:
                path = Path(store.path, object_id[:2], object_id[2:])
                if path.is_file():
                    return self._read_loose(path)
        raise MissingError(
            f'"{self.name}" has no object {object_id}: it may be a shallow or partial copy, so use the original'
        )

    def _read_loose(self, path: Path) -> tuple[int, bytes]:
        inflater = zlib.decompressobj()
        with path.open("rb") as file:
            content = bytearray()
            try:
                while (piece := file.read(LARGEST_TREE_BYTES)) and len(content) <= self._most + LONGEST_HEADER:
                    content += inflater.decompress(piece, self._most + LONGEST_HEADER + 1 - len(content))
            except zlib.error as error:
                raise SourceError(f'"{self.name}" is damaged: {path.name} can\'t be read') from error
        header, _, body = bytes(content).partition(b"\0")
        kind, _, size = header.partition(b" ")
        if kind not in KINDS or not size.isdigit():
            raise SourceError(f'"{self.name}" is damaged: {path.name} is no object')
        if int(size) > self._most:
            raise OversizedError
        if int(size) != len(body):
            raise SourceError(f'"{self.name}" is damaged: {path.name} is not whole')
        return KINDS[kind], body

    def _pack(self, pack: PackFile) -> Pack:
        index = pack.index
        with Path(pack.data.path).open("rb") as file:
            data = self._stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

        def find(digest: bytes) -> int:
            try:
                return index.object_offset(RawObjectID(digest))
            except KeyError:
                raise
            except Exception as error:
                raise self._unreadable(error) from error

        return Pack(data, find, max_object_bytes=self._most)

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(f'the repository in "{self.name}" can\'t be read: {reason(error)}; run `git fsck` on it')
