"""The demo stands by itself: nothing of the user's is reached, everything of its own is gone in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

PKM = Path(sys.executable).with_name("pkm")
NOWHERE = "http://127.0.0.1:9"
SECONDS = 200


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.md").write_text(f"# Note {number}\n\nMarie Curie worked in Paris on day {number}.\n")
    return folder


def descendants(parent: int) -> set[int]:
    children = {
        int(child) for file in Path(f"/proc/{parent}/task").glob("*/children") for child in file.read_text().split()
    }
    return children.union(*(descendants(child) for child in children))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.thorough
def test_the_demo_reaches_nothing_of_the_users(documents: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PKM_CATALOG=rest\nPKM_CATALOG_URI={NOWHERE}\nPKM_NONSENSE=1\n")
    theirs = {
        "AWS_PROFILE": "production",
        "AWS_ENDPOINT_URL_S3": NOWHERE,
        "AWS_SESSION_TOKEN": "theirs",
        "PKM_BUCKET": "production",
        "HTTP_PROXY": NOWHERE,
        "http_proxy": NOWHERE,
    }

    done = subprocess.run(
        [PKM, "demo", "--path", "documents", "--json"],
        cwd=tmp_path,
        env={**os.environ, **theirs},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    report = orjson.loads(done.stdout)
    assert (report["documents"], report["missing"]) == (3, [])
    assert report["rows"]["silver.notes"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {".env", "documents"}


@pytest.mark.thorough
def test_ctrl_c_ends_the_demo_at_once_and_leaves_nothing(documents: Path) -> None:
    demo = subprocess.Popen([PKM, "demo", "--path", documents], stderr=subprocess.PIPE, start_new_session=True)
    assert demo.stderr is not None
    with demo.stderr as messages:
        while b"processing" not in messages.readline():
            assert demo.poll() is None
        children = descendants(demo.pid)
        folder = Path(f"/proc/{demo.pid}/cwd").readlink()
        interrupted = time.monotonic()
        os.killpg(demo.pid, signal.SIGINT)

        assert demo.wait(timeout=SECONDS) == 130
        assert messages.read() == b""
    assert time.monotonic() - interrupted < 5
    assert children
    deadline = time.monotonic() + 10
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if alive(child)]
    assert folder.parent == Path("/dev/shm")
    assert not folder.exists()


def test_a_folder_that_does_not_exist_is_said_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [PKM, "demo", "--path", tmp_path / "nowhere"], capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert done.returncode == 1
    assert done.stderr == f'error: "{tmp_path}/nowhere" does not exist: name a folder of documents\n'
