"""Which files there are: folders, globs and single files, with ignore rules, hidden names and links in mind."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from core.errors import MissingError, SettingsError
from producers.ignore_rules import IgnoreRules
from producers.items import LeftAlone

__all__ = ["STANDARD_INPUT", "FoundFile", "check_name", "list_files", "shown"]

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file and the identity of its note; or standard input, whose identity is known once it is read."""

    path: str
    identity: str


class _Start(NamedTuple):
    """Where to look: `path` is the root, or a file or glob match below it; None is standard input."""

    root: str
    path: str
    by_itself: bool


def list_files(
    paths: Sequence[Path | str], *, name: str | None = None, ignore: bool = True, report: LeftAlone
) -> Iterator[FoundFile]:
    """Find the files at `paths`, in sorted order per path, each file once; `producers.files.files` tells which.

    Raises MissingError for a path that does not exist or a glob that matches nothing, and SettingsError for a `name`
    that can't begin an identity, before the first file.
    """
    checked = None if name is None else check_name(name)
    starts = [start for path in paths for start in _starts(str(path))]
    return _list(starts, checked, ignore=ignore, report=report)


def check_name(name: str) -> str:
    """Return `name` as identities begin with it. Raises SettingsError for one that is empty, absolute or has `..`."""
    parts = PurePosixPath(unicodedata.normalize("NFC", name)).parts
    if not parts or parts[0] == "/" or ".." in parts or not name.isprintable():
        raise SettingsError(f'"{name}" can\'t be the name of a folder: give one such as vault, or ann/vault')
    return "/".join(parts)


def shown(path: str | Path) -> str:
    """Spell a path that need not be UTF-8 so that keys and logs can hold it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _starts(text: str) -> list[_Start | None]:
    if text == STANDARD_INPUT:
        return [None]
    path = Path(text)
    if path.exists():
        resolved = path.resolve()
        root = resolved if resolved.is_dir() else resolved.parent
        return [_Start(str(root), str(resolved), by_itself=True)]
    if not glob.has_magic(text):
        raise MissingError(f'"{text}" does not exist: give a file, a folder, a glob or - for standard input')
    plain = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
    top = Path(*path.parts[:plain]).resolve()
    # Unlike pathlib's, this glob leaves hidden names alone, as a shell does.
    matches = sorted(glob.glob(str(Path(*path.parts[plain:])), root_dir=top, recursive=True))  # noqa: PTH207
    if not matches:
        raise MissingError(f'"{text}" matches nothing: quote a glob, and use ** for folders below')
    return [_Start(str(top), str(top / match), by_itself=False) for match in matches]


def _list(
    starts: Sequence[_Start | None], name: str | None, *, ignore: bool, report: LeftAlone
) -> Iterator[FoundFile]:
    def of_rules(path: str, reason: str) -> None:
        report(shown(path), reason)

    seen: dict[str, str] = {}
    rules: dict[str, IgnoreRules] = {}
    for start in starts:
        if start is None:
            yield FoundFile(STANDARD_INPUT, "")
            continue
        of_root = None
        if ignore:
            of_root = rules.setdefault(
                start.root, IgnoreRules(start.root, report=lambda at, why: report(shown(at), why))
            )
        for path in _below(start, of_root, report):
            identity = _identity(start.root, path, name)
            first = seen.setdefault(identity, path)
            if first is path:
                yield FoundFile(path, identity)
            elif first != path:
                report(shown(path), f"{shown(first)} has the same identity {identity}: give them another --name")


def _below(start: _Start, rules: IgnoreRules | None, report: LeftAlone) -> Iterator[str]:
    # The root is resolved, so a path that resolves to another is reached through a link.
    if os.path.realpath(start.path) != start.path:
        _report_link(start.root, start.path, report)
        return
    is_folder = os.path.isdir(start.path)  # noqa: PTH112 - text, as everywhere here
    if not start.by_itself and rules is not None and rules.ignores_any(start.path, is_folder=is_folder):
        return
    if not is_folder:
        yield start.path
        return
    # A stack instead of recursion: folders may lie deeper than Python's stack.
    stack = [iter(_entries(start.path, report))]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        if entry.is_symlink():
            _report_link(start.root, entry.path, report)
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if rules is not None and rules.ignores(entry.path, is_folder=is_folder):
            continue
        if is_folder:
            stack.append(iter(_entries(entry.path, report)))
        else:
            yield entry.path


def _entries(folder: str, report: LeftAlone) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        report(shown(folder), f"can't be read: {error.strerror}")
        return []
    return sorted(found, key=lambda entry: entry.name)


def _report_link(root: str, path: str, report: LeftAlone) -> None:
    # The target of a link within the folder is read at its own place.
    if not Path(os.path.realpath(path)).is_relative_to(root):
        report(shown(path), f"is a link that leaves {shown(root)}")


def _identity(root: str, path: str, name: str | None) -> str:
    relative = path[len(root) :].lstrip(os.sep)
    # Some systems store names decomposed; the same name must give the same note.
    below = unicodedata.normalize("NFC", shown(relative).replace(os.sep, "/"))
    top = unicodedata.normalize("NFC", shown(os.path.basename(root))) if name is None else name  # noqa: PTH119
    return f"{top}/{below}" if top else below
