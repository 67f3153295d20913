"""A process keeps to its folder in memory, leaves nothing behind, and is told before memory is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core import memory
from core.errors import ResourceError
from core.memory import check_room, private_folder
from core.settings import Settings

SHOW = (
    "import os, sys, tempfile; from core import memory; memory.keep_off_disks(); "
    "print(memory.private_folder(), tempfile.gettempdir(), os.environ['XDG_CACHE_HOME'], sys.dont_write_bytecode, "
    "flush=True); "
)


def run(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"PATH": os.environ["PATH"], **variables},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_temporary_files_and_caches_are_in_memory_and_gone_with_the_process() -> None:
    printed, _ = run(SHOW + "open(tempfile.mkstemp()[1], 'w').write('x')").communicate(timeout=60)
    own, temporary, cache, no_bytecode = printed.split()
    assert own.startswith(f"/dev/shm/pkm-{os.geteuid()}-")
    assert (temporary, cache, no_bytecode) == (f"{own}/tmp", f"{own}/cache", "True")
    assert not Path(own).exists()


def test_what_the_environment_says_is_left_alone(tmp_path: Path) -> None:
    printed, _ = run(SHOW, TMPDIR=str(tmp_path), XDG_CACHE_HOME="/elsewhere").communicate(timeout=60)
    assert printed.split()[1:3] == [str(tmp_path), "/elsewhere"]


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_not() -> None:
    killed, living = run(SHOW + "sys.stdin.read()"), run(SHOW + "import time; time.sleep(60)")
    folders = []
    for process in (killed, living):
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().split()[0]))
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    run(SHOW).communicate(timeout=60)
    assert [folder.exists() for folder in folders] == [False, True]
    living.kill()
    living.communicate(timeout=30)


def test_there_must_be_room_with_some_to_spare(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery, own = tmp_path / "recovery", tmp_path / "own"
    for folder, mebibytes in ((recovery, 8), (own, 12)):
        folder.mkdir()
        (folder / "file").write_bytes(os.urandom(mebibytes * 1024**2))

    def check(limit: int | None, **options: int) -> None:
        check_room(
            settings.model_copy(update={"memory_dir_bytes": limit and limit * 1024**2}), recovery, own, **options
        )

    check(None)
    check(26)
    with pytest.raises(ResourceError) as raised:
        check(24)
    for part in (str(recovery), str(own), "hold 20.0 MiB", "5.0 MiB more must be free", "BYTES is 24.0 MiB", "raise"):
        assert part in str(raised.value)
    check(48, needed_bytes=16 * 1024**2)
    with pytest.raises(ResourceError, match=r"25\.0 MiB more must be free"):
        check(44, needed_bytes=16 * 1024**2)
    # Also where the file system is smaller than the setting allows, or others have filled it.
    monkeypatch.setattr(memory, "HEADROOM_BYTES", 1 << 60)
    with pytest.raises(ResourceError, match="are free"):
        check(None)


def test_a_process_has_one_folder() -> None:
    assert private_folder() == private_folder()
    assert private_folder().stat().st_mode & 0o777 == 0o700
