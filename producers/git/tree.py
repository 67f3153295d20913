"""The files of one commit, and which of them are documents: pure functions over what a repository says of itself."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from core.errors import SourceError
from operators.formats.detect import decode, is_readable_name
from operators.formats.extracted import Refusal

__all__ = [
    "Commit",
    "Entry",
    "Kind",
    "Selection",
    "chosen",
    "is_object_id",
    "kind_of",
    "left_alone",
    "read_commit",
    "time_of",
    "walk",
]

Kind = Literal["file", "folder", "link", "submodule", "unusable"]
_KINDS: Mapping[int, Kind] = {0o100000: "file", 0o040000: "folder", 0o120000: "link", 0o160000: "submodule"}
LONGEST_PATH = 1_000
_LARGE_FILE_POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER_BYTES = 1_024
_OBJECT_ID = re.compile(r"[0-9a-f]{40}")
_COMMIT = re.compile(
    rb"tree (?P<tree>[0-9a-f]{40})\n(?:parent [0-9a-f]{40}\n)*"
    rb"author [^\n]*> (?P<authored>-?\d{1,18}) [+-]\d{4}\ncommitter [^\n]*> (?P<committed>-?\d{1,18}) [+-]\d{4}\n"
)


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit: its id, that of its root tree, and its aware UTC times."""

    id: str
    tree: str
    authored_at: datetime
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """What a tree has under `path`, and the id of its object; `size_bytes` is None where only the object knows it."""

    path: str
    kind: Kind
    id: str
    size_bytes: int | None = None


class Selection:
    """Which paths are wanted: all, or those that one of the `globs` matches, as git's own pathspecs do.

    `*` matches `/` too, and a folder's path all that is below it.
    """

    def __init__(self, globs: Sequence[str] = ()) -> None:
        cleaned = [unicodedata.normalize("NFC", glob).removeprefix("./").strip("/") for glob in globs]
        self._globs = tuple(glob for glob in cleaned if glob != ".") if "." not in cleaned else ()

    @property
    def globs(self) -> tuple[str, ...]:
        """The globs, sorted and each once; none stands for everything."""
        return tuple(sorted(set(self._globs)))

    def wants(self, path: str) -> bool:
        """Tell whether the file at `path` is wanted."""
        return not self._globs or any(
            fnmatch.fnmatchcase(path, glob) or fnmatch.fnmatchcase(path, f"{glob}/*") for glob in self._globs
        )

    def may_hold(self, folder: str) -> bool:
        """Tell whether anything below `folder` may be wanted."""
        return not self._globs or any(_overlap(_literal_start(glob), f"{folder}/") for glob in self._globs)


def _literal_start(glob: str) -> str:
    magic = re.search(r"[*?\[]", glob)
    return glob[: magic.start()] if magic else f"{glob}/"


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def read_commit(object_id: str, content: bytes) -> Commit:
    """Read a commit object; raises SourceError when it is none."""
    found = _COMMIT.match(content)
    if found is None:
        raise SourceError(f"commit {object_id} can't be read: run `git fsck` on the repository")
    return Commit(
        object_id, found["tree"].decode(), time_of(int(found["authored"])), time_of(int(found["committed"]))
    )


def time_of(seconds: int) -> datetime:
    """Turn the seconds since 1970 of a commit into a time; 1970 for what is none."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def kind_of(mode: int) -> Kind:
    """Tell from the mode of a tree's entry what it is."""
    return _KINDS.get(mode & 0o170000, "unusable")


def walk(
    root: str, read_tree: Callable[[str], Iterable[Entry]], *, selection: Selection, most: int
) -> Iterator[Entry]:
    """Give what is below the tree `root` in order, but for its folders. `read_tree` gives the entries of one tree by
    their names; hidden folders, and those that hold nothing wanted, are not read.

    Raises SourceError when there are more than `most` entries, however few objects they are made of.
    """
    seen = 0
    open_folders = [("", iter(read_tree(root)))]
    while open_folders:
        folder, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
            continue
        seen += 1
        if seen > most:
            raise SourceError(
                f"the repository has more than {most:,} files and folders: choose a part of it with --path, or set "
                "PKM_GIT_FILES"
            )
        name = unicodedata.normalize("NFC", entry.path)
        path = f"{folder}{name}"
        usable = _is_usable(name) and len(path.encode()) <= LONGEST_PATH
        found = Entry(path[:LONGEST_PATH], entry.kind if usable else "unusable", entry.id, entry.size_bytes)
        if found.kind != "folder" or _is_hidden(path):
            yield found
        elif selection.may_hold(path):
            open_folders.append((f"{path}/", iter(read_tree(entry.id))))


def chosen(entries: Iterable[Entry], *, selection: Selection, left: Counter[str]) -> dict[str, Entry]:
    """Return the files that may be documents, by path; counts in `left` why others that are wanted are left alone.

    A hidden folder counts once.
    """
    files: dict[str, Entry] = {}
    for entry in entries:
        if not selection.wants(entry.path):
            continue
        if entry.kind == "unusable":
            left["unusable name"] += 1
        elif _is_hidden(entry.path):
            left["hidden"] += 1
        elif entry.kind != "file":
            left["submodule" if entry.kind == "submodule" else "symbolic link"] += 1
        elif not is_readable_name(entry.path):
            left["kind that is not read"] += 1
        elif entry.path in files:
            left["same name as another"] += 1
        else:
            files[entry.path] = entry
    return files


def left_alone(content: bytes) -> str | None:
    """Say why a file of this content is no document; None for a text. One in an unknown encoding counts as a text."""
    if not content.strip():
        return "empty"
    if len(content) <= LARGEST_POINTER_BYTES and content.startswith(_LARGE_FILE_POINTER):
        return "pointer to large file storage"
    try:
        decode(content)
    except Refusal as refusal:
        if refusal.refused.error == "UnsupportedFormat":
            return "binary"
    return None


def _is_usable(name: str) -> bool:
    return name not in {"", ".", ".."} and "/" not in name and "\x00" not in name


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def is_object_id(text: str) -> bool:
    """Tell whether `text` is a whole object id, 40 hex digits."""
    return _OBJECT_ID.fullmatch(text) is not None
