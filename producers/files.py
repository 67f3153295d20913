"""Files, folders, globs and standard input as source items.

A file's identity is its path below the root that was given, beginning with the root folder's own name: below
`/home/ann/vault` and `/srv/vault` it is `vault/topics/streams.md`, so it is the same note on every machine. A file
that is given by itself has its parent folder as root.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import structlog

from core.errors import MissingError
from core.settings import Settings
from producers.announce import SourceItem
from producers.content_types import content_type_of

__all__ = ["content_type_of", "files"]

SOURCE_TYPE = "files"
STANDARD_INPUT = "-"
LeftAlone = Callable[[str, str], None]


class _Start(NamedTuple):
    root: Path
    path: Path


def files(
    paths: Sequence[Path | str],
    *,
    settings: Settings,
    on_left_alone: LeftAlone | None = None,
    standard_input: BinaryIO | None = None,
) -> Iterator[SourceItem]:
    """Give the files at `paths`, one in memory at a time, in sorted order per path, each file once.

    A path is a file, a folder (with all below it), a glob (`**` for any depth) or `-` for standard input, whose
    identity is its content's digest. Left alone, with the reason given to `on_left_alone(path, reason)` (default: a
    warning in the log): symbolic links that leave the folder, what is no regular file or can't be read, files above
    `settings.max_object_bytes`, and a second file of the same identity. Hidden files and folders are left alone
    silently, unless given by themselves; links within a folder too, since their target is read at its own place.

    Raises MissingError for a path that does not exist or a glob that matches nothing, before the first item.
    """
    report = on_left_alone or _log
    starts = [start for path in paths for start in _roots(str(path))]
    return _read_all(starts, settings.max_object_bytes, report, standard_input)


def _log(path: str, reason: str) -> None:
    structlog.get_logger(module=__name__).warning("left alone", path=path, reason=reason)


def _roots(text: str) -> list[_Start | None]:
    """Resolve one argument to where to read; None stands for standard input."""
    if text == STANDARD_INPUT:
        return [None]
    path = Path(text)
    if path.exists():
        resolved = path.resolve()
        return [_Start(resolved if resolved.is_dir() else resolved.parent, resolved)]
    if not glob.has_magic(text):
        raise MissingError(f'"{text}" does not exist: give a file, a folder, a glob or - for standard input')
    plain = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
    root = Path(*path.parts[:plain]).resolve()
    # Unlike pathlib's, this glob leaves hidden names alone, as a shell does.
    matches = sorted(glob.glob(str(Path(*path.parts[plain:])), root_dir=root, recursive=True))  # noqa: PTH207
    if not matches:
        raise MissingError(f'"{text}" matches nothing: quote a glob, and use ** for folders below')
    return [_Start(root, root / match) for match in matches]


def _read_all(
    starts: Sequence[_Start | None], max_bytes: int, report: LeftAlone, standard_input: BinaryIO | None
) -> Iterator[SourceItem]:
    seen: dict[str, Path] = {}
    for start in starts:
        if start is None:
            yield from _read_standard_input(standard_input or sys.stdin.buffer, max_bytes, report)
            continue
        for path in _walk(start.root, start.path, report):
            identity = _identity(start.root, path)
            first = seen.get(identity)
            if first is None:
                seen[identity] = path
                yield from _read(path, identity, max_bytes, report)
            elif first != path:
                report(_shown(path), f"{_shown(first)} has the same identity {identity}: give their common folder")


def _walk(root: Path, path: Path, report: LeftAlone) -> Iterator[Path]:
    # The root is resolved, so a path that resolves to another is reached through a link.
    target = Path(os.path.realpath(path))
    if target != path:
        if not target.is_relative_to(root):
            report(_shown(path), f"is a link that leaves {_shown(root)}")
        return
    if not path.is_dir():
        yield path
        return
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208 - names are all that is needed
    except OSError as error:
        report(_shown(path), f"can't be read: {error.strerror}")
        return
    for name in names:
        if not name.startswith("."):
            yield from _walk(root, path / name, report)


def _read(path: Path, identity: str, max_bytes: int, report: LeftAlone) -> Iterator[SourceItem]:
    try:
        # Neither a link that took the file's place since, nor a pipe without a writer, is waited for or followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                report(_shown(path), "is no regular file")
                return
            content = file.read(max_bytes + 1)
    except OSError as error:
        report(_shown(path), f"can't be read: {error.strerror}")
        return
    if len(content) > max_bytes:
        report(_shown(path), _too_large(max_bytes))
        return
    yield SourceItem(
        source_type=SOURCE_TYPE,
        identity=identity,
        content=content,
        content_type=content_type_of(path.name),
        metadata={
            "path": identity,
            "size": str(len(content)),
            "mtime": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
        },
    )


def _read_standard_input(stream: BinaryIO, max_bytes: int, report: LeftAlone) -> Iterator[SourceItem]:
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        report(STANDARD_INPUT, _too_large(max_bytes))
        return
    # Standard input has no name: each text that comes through it is a note of its own.
    identity = f"standard-input/{hashlib.sha256(content).hexdigest()[:32]}"
    yield SourceItem(SOURCE_TYPE, identity, content, metadata={"path": identity, "size": str(len(content))})


def _identity(root: Path, path: Path) -> str:
    # Some systems store names decomposed; the same name must give the same note.
    return unicodedata.normalize("NFC", _shown(Path(root.name, *path.relative_to(root).parts), separator="/"))


def _shown(path: Path, *, separator: str = os.sep) -> str:
    # A name need not be UTF-8, but keys and logs are.
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, separator)


def _too_large(max_bytes: int) -> str:
    return f"is larger than {max_bytes:,} bytes (PKM_MAX_OBJECT_BYTES)"
