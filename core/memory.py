"""Keeps a process off the disks: its one folder in memory, libraries pointed at it, and a ceiling for all of it."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from core.errors import ResourceError
from core.settings import Settings

__all__ = ["check_room", "keep_off_disks", "private_folder"]

MEMORY = Path("/dev/shm")  # noqa: S108 - memory is the point, and mkdtemp makes the folder private
HEADROOM_BYTES = 4 * 1024 * 1024
"""SQLite's log takes about this much before it is folded into the database."""

HEADROOM_SHARE = 4
"""The headroom is at least one part in this of what is used: state may grow that much between two looks."""

# Variables by which libraries find a place to write, and the folder that they get. A user's own value goes first.
PLACES = {
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "BYTEWAX_DATAFLOW_API_CACHE_PATH": "api",
}


def keep_off_disks() -> None:
    """Point temporary files and caches of all libraries, in this process and its children, at memory.

    To be called before anything heavy is imported. What the environment already says is left alone. Where there is no
    memory file system that can be written to, nothing changes.
    """
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if not os.access(MEMORY, os.W_OK):
        return
    for variable, name in PLACES.items():
        if not os.environ.get(variable):
            folder = private_folder() / name
            folder.mkdir(exist_ok=True)
            os.environ[variable] = str(folder)
    # The standard library remembers the first answer.
    tempfile.tempdir = None


def private_folder() -> Path:
    """Return the folder in memory that belongs to this process alone; it goes when the process ends.

    Folders of processes that were killed are removed when the next one is made. Raises OSError without memory.
    """
    return _folder_of(os.getpid())


@lru_cache(maxsize=1)
def _folder_of(process_id: int) -> Path:
    _remove_abandoned()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=MEMORY))
        # Held until the process ends, however it ends.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():  # unless another process took it for abandoned before it was locked
            break
        os.close(descriptor)

    def remove() -> None:
        if os.getpid() == process_id:  # a forked child ends; the process does not
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _remove_abandoned() -> None:
    for folder in MEMORY.glob(f"{_prefix()}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or not ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(descriptor)


def _prefix() -> str:
    return f"pkm-{os.geteuid()}-"


def check_room(
    settings: Settings, recovery: Path, own: Path, *, needed_bytes: int = 0, purpose: str = "recovery state"
) -> None:
    """Refuse to go on before memory is full: `needed_bytes` more, and some headroom, must fit.

    What counts is what is in the `recovery` directory and in the flow's `own` private folder.

    Raises ResourceError that names the folder, what is in it, the limit and what to do. The limit is
    `PKM_MEMORY_DIR_BYTES`, or the file system's size without it.
    """
    used = _size(recovery) + _size(own)
    wanted = needed_bytes + max(HEADROOM_BYTES, (used + needed_bytes) // HEADROOM_SHARE)
    nearest = next(path for path in (recovery, *recovery.parents) if path.exists())
    space = os.statvfs(nearest)
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    limit = settings.memory_dir_bytes or total
    if used + wanted > limit or wanted > free:
        ceiling = f"PKM_MEMORY_DIR_BYTES is {_mebibytes(limit)}" if limit < total else f"it has {_mebibytes(total)}"
        raise ResourceError(
            f"{purpose} does not fit into memory: {recovery} and {own} hold "
            f"{_mebibytes(used)}, {_mebibytes(wanted)} more must be free, {ceiling} and {_mebibytes(free)} are free: "
            f"give the container a larger {MEMORY}, raise PKM_MEMORY_DIR_BYTES, or lower PKM_DEDUPE_HOURS"
        )


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512  # noqa: PTH118 - walk gives text
            except OSError:
                continue  # a log that was folded into its database meanwhile
    return total


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"
