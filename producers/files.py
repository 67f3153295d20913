"""Files, folders, globs and standard input as source items.

A file's identity is its path below the root that was given, beginning with the root folder's own name: below
`/home/ann/vault` and `/srv/vault` it is `vault/topics/streams.md`, so it is the same note on every machine. A file
that is given by itself has its parent folder as root. Two folders that only happen to have the same name are told
apart by giving one another `name`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import structlog

from core.settings import Settings
from producers.content_types import content_type_of
from producers.file_listing import STANDARD_INPUT, FoundFile, list_files, shown
from producers.items import LeftAlone, SourceItem

__all__ = ["files", "read_files"]

SOURCE_TYPE = "files"


def files(
    paths: Sequence[Path | str],
    *,
    settings: Settings,
    name: str | None = None,
    ignore: bool = True,
    on_left_alone: LeftAlone | None = None,
    standard_input: BinaryIO | None = None,
) -> Iterator[SourceItem]:
    """Give the files at `paths`, one in memory at a time, in sorted order per path, each file once.

    A path is a file, a folder (with all below it), a glob (`**` for any depth) or `-` for standard input, whose
    identity is its content's digest. With a `name` identities begin with it instead of the root folder's own name.

    Left alone, with the reason given to `on_left_alone(path, reason)` (default: a warning in the log): symbolic links
    that leave the folder, what is no regular file or can't be read, files above `settings.max_object_bytes`, and a
    second file of the same identity. Left alone silently, unless given by themselves: hidden files and folders, and
    (if `ignore`) what `.gitignore` and `.pkmignore` within the folder leave out; links within a folder too, since
    their target is read at its own place.

    Raises MissingError for a path that does not exist or a glob that matches nothing, and SettingsError for a `name`
    that can't begin an identity, before the first item.
    """
    report = on_left_alone or _log_left_alone
    found = list_files(paths, name=name, ignore=ignore, report=report)
    return read_files(found, settings=settings, on_left_alone=report, standard_input=standard_input)


def read_files(
    found: Iterable[FoundFile],
    *,
    settings: Settings,
    on_left_alone: LeftAlone | None = None,
    standard_input: BinaryIO | None = None,
) -> Iterator[SourceItem]:
    """Read what `producers.file_listing.list_files` found, as `files` does."""
    report, max_bytes = on_left_alone or _log_left_alone, settings.max_object_bytes
    for one in found:
        if one.path == STANDARD_INPUT:
            item = _read_standard_input(standard_input or sys.stdin.buffer, max_bytes, report)
        else:
            item = _read(one, max_bytes, report)
        if item is not None:
            yield item


def _log_left_alone(path: str, reason: str) -> None:
    structlog.get_logger(module=__name__).warning("left alone", path=path, reason=reason)


def _read(found: FoundFile, max_bytes: int, report: LeftAlone) -> SourceItem | None:
    try:
        # Neither a link that took the file's place since, nor a pipe without a writer, is waited for or followed.
        descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                report(shown(found.path), "is no regular file")
                return None
            content = file.read(max_bytes + 1)
    except OSError as error:
        report(shown(found.path), f"can't be read: {error.strerror}")
        return None
    if len(content) > max_bytes:
        report(shown(found.path), _too_large(max_bytes))
        return None
    return SourceItem(
        source_type=SOURCE_TYPE,
        identity=found.identity,
        content=content,
        content_type=content_type_of(found.path.rpartition(os.sep)[2]),
        metadata={
            "path": found.identity,
            "size": str(len(content)),
            **_modified(status.st_mtime),
        },
    )


def _modified(seconds: float) -> dict[str, str]:
    try:
        return {"mtime": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")}
    except (ValueError, OverflowError):
        return {}  # a file system holds years that a calendar does not


def _read_standard_input(stream: BinaryIO, max_bytes: int, report: LeftAlone) -> SourceItem | None:
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        report(STANDARD_INPUT, _too_large(max_bytes))
        return None
    # Standard input has no name: each text that comes through it is a note of its own.
    identity = f"standard-input/{hashlib.sha256(content).hexdigest()[:32]}"
    return SourceItem(SOURCE_TYPE, identity, content, metadata={"path": identity, "size": str(len(content))})


def _too_large(max_bytes: int) -> str:
    return f"is larger than {max_bytes:,} bytes (PKM_MAX_OBJECT_BYTES)"
