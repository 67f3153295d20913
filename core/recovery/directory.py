"""Prepares the folder that bytewax's recovery partition lives in: private, in use by one flow, and empty."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from bytewax.recovery import init_db_dir

from core.errors import SnapshotError

__all__ = ["DATABASE", "DirectoryLock", "clear", "in_memory", "make_private", "place"]

DATABASE = "part-0.sqlite3"
_LOCK = ".pkm-lock"
_IN_MEMORY = {"tmpfs", "ramfs"}
_RETRY_SECONDS = 0.1


class DirectoryLock:
    """Says that a live process uses a directory; the kernel releases it when that process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = os.open(
            directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )

    def acquire(self, *, seconds: float) -> bool:
        """Wait up to `seconds` for the lock; tell whether we have it."""
        if self._descriptor is None:
            return False
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY_SECONDS)

    def release(self) -> None:
        """Let go; safe to repeat."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def make_private(directory: Path) -> None:
    """Create `directory` (mode 0700) with its parents, or check that no other user can change the one that is there.

    What lies in it is opened as pickle, so another user's directory is not safe.

    Raises SnapshotError when it, or the folder it lies in, belongs to another user than us or root, when it is a
    link, and when it can't be created.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists() and not path.is_symlink()]
    try:
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SnapshotError(
            f"the recovery directory {directory} can't be created ({error}): choose another PKM_RECOVERY_DIR"
        ) from error
    if directory.is_symlink() or not directory.is_dir():
        raise SnapshotError(f"the recovery directory {directory} is not a folder: choose another PKM_RECOVERY_DIR")
    for path in (directory, directory.parent):
        owner = path.stat().st_uid
        if owner not in {0, os.geteuid()}:
            raise SnapshotError(
                f"{path} belongs to user {owner}, who could place code in the recovery directory {directory}: "
                f"set PKM_RECOVERY_DIR to a folder of your own"
            )
    # A volume that Kubernetes mounts belongs to root and stays as it is: only this container sees it.
    status = directory.stat()
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        directory.chmod(0o700)


def clear(directory: Path) -> None:
    """Remove every recovery partition from `directory`; what is on S3 is the truth."""
    for path in directory.glob("part-*.sqlite3*"):
        path.unlink(missing_ok=True)


def place(directory: Path, content: bytes | None) -> None:
    """Replace whatever partitions are in `directory` by one: `content`, or an empty one.

    More than one is never wanted: partitions copied at different times resume into wrong state without an error.
    """
    clear(directory)
    if content is None:
        init_db_dir(directory, 1)  # type: ignore[no-untyped-call]
        return
    descriptor = os.open(directory / DATABASE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def in_memory(directory: Path) -> bool:
    """Tell whether `directory` is on a file system in memory; True where the kernel does not say."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return True
    kinds = {}
    for line in mounts.read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        # The kernel writes a blank in a path as \040; a later mount hides an earlier one.
        kinds[Path(mount_point.replace("\\040", " "))] = kind
    resolved = directory.resolve()
    nearest = next((path for path in (resolved, *resolved.parents) if path in kinds), None)
    return nearest is None or kinds[nearest] in _IN_MEMORY
