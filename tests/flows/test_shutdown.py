"""A flow that is told to stop ends within 8 seconds with code 0; nothing is lost, doubled or half full afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.records import event_identity, note_identity
from core.recovery.store import SnapshotStore
from loopback import cluster_addresses

REPOSITORY = Path(__file__).parents[2]
PROMISED_SECONDS = 8.0
# Without models a process starts in two seconds. Windows of an hour stay open for all of a test, unless it ends them.
PLAIN = {"PKM_ENRICH": "none", "PKM_WINDOW_SECONDS": "3600"}


def announce(lakehouse: Any, numbers: range) -> None:
    for number in numbers:
        content = f"# Note {number}\n\nMarie Curie met Niels Bohr in Paris on day {number}.\n".encode() * 3
        path = f"notes/{number}.md"
        event_id = event_identity("git", path, content)
        lakehouse.put(f"bronze/raw/git/{event_id}", content)
        lakehouse.send(
            {
                "event_id": event_id,
                "note_id": note_identity("git", path),
                "source_type": "git",
                "content_size": len(content),
                "metadata": {"path": path},
                "timestamp": "2026-11-23T08:00:00Z",
                "s3_key": f"bronze/raw/git/{event_id}",
            }
        )


def bronze_ids(lakehouse: Any) -> list[str]:
    return [row["event_id"] for row in lakehouse.table("bronze.notes", columns=("event_id",))]


def wait_until_read(lakehouse: Any, process: subprocess.Popen[bytes]) -> None:
    lakehouse.wait_for(lambda: bool(bronze_ids(lakehouse)) or process.poll() is not None, what="the first commit")
    assert process.poll() is None, process.communicate()[0].decode()[-4000:]


def assert_stops(*processes: subprocess.Popen[bytes], send: Callable[[], None] | None = None) -> list[str]:
    """Send SIGTERM to all (or do what `send` does); each ends in time, with code 0. What they said."""
    began = time.monotonic()
    if send is not None:
        send()
    else:
        for process in processes:
            process.send_signal(signal.SIGTERM)
    said = []
    for process in processes:
        printed, _ = process.communicate(timeout=30)
        seconds = time.monotonic() - began
        assert process.returncode == 0, printed.decode()[-4000:]
        assert seconds < PROMISED_SECONDS, f"took {seconds:.1f} s:\n{printed.decode()[-4000:]}"
        assert b"Traceback" not in printed, printed.decode()[-4000:]
        assert b"panicked" not in printed, printed.decode()[-4000:]
        said.append(printed.decode())
    return said


def assert_nothing_lost_or_doubled(lakehouse: Any, *, notes: int) -> None:
    ids = bronze_ids(lakehouse)
    assert len(ids) == len(set(ids)) == notes
    assert len({row["note_id"] for row in lakehouse.table("silver.notes")}) == notes
    assert lakehouse.table("bronze.failures") == []
    assert sum(row["count"] for row in lakehouse.table("silver.metrics")) == notes
    assert len(lakehouse.index_keys("note/")) == notes


def pkm_run(lakehouse: Any, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("pkm")), "run", *arguments],
        env={**os.environ, "PKM_SNAPSHOT_SECONDS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lakehouse.processes.append(process)
    return process


def start(lakehouse: Any, how: str) -> list[subprocess.Popen[bytes]]:
    if how == "two processes":
        addresses = cluster_addresses(2)
        return [lakehouse.start("-i", number, "-a", addresses, **PLAIN) for number in ("0", "1")]
    if how.startswith("pkm run"):
        return [pkm_run(lakehouse, *how.split()[2:], **PLAIN)]
    return [lakehouse.start(*how.split()[2:], **PLAIN)]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("plain bytewax -w 2", marks=pytest.mark.thorough),
        "pkm run --workers 2",
        pytest.param("two processes", marks=pytest.mark.thorough),
    ],
)
def test_a_stopped_flow_has_lost_and_doubled_nothing_and_emits_no_open_window(lakehouse: Any, how: str) -> None:
    announce(lakehouse, range(20))
    processes = start(lakehouse, how)
    wait_until_read(lakehouse, processes[0])
    announce(lakehouse, range(20, 30))
    assert_stops(*processes)

    assert lakehouse.table("silver.metrics") == []
    # The last epoch was completed: what is in the table is what the newest snapshot stands behind.
    committed = len(bronze_ids(lakehouse))
    manifest = SnapshotStore(lakehouse.settings, flow="knowledge").manifest()
    assert manifest is not None
    assert manifest.newest is not None
    shutil.rmtree(lakehouse.recovery, ignore_errors=True)
    again = lakehouse.run_until_caught_up(**PLAIN, PKM_LOG_LEVEL="info")
    assert manifest.newest.id in again
    assert len(bronze_ids(lakehouse)) >= committed
    assert_nothing_lost_or_doubled(lakehouse, notes=30)


def test_ctrl_c_stops_a_flow_like_sigterm(lakehouse: Any) -> None:
    announce(lakehouse, range(5))
    process = pkm_run(lakehouse, **PLAIN)
    wait_until_read(lakehouse, process)
    (said,) = assert_stops(process, send=lambda: process.send_signal(signal.SIGINT))
    assert "flow knowledge was stopped; the next run resumes" in said


@pytest.mark.thorough
def test_the_entrypoint_stops_as_process_1_under_a_shell(lakehouse: Any, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "this test makes a PID namespace: run it as root"
    announce(lakehouse, range(20))
    # As in the image: what the chart calls sh is bash.
    (tmp_path / "sh").symlink_to("/bin/bash")
    lakehouse.recovery.mkdir()
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", "sh docker/entrypoint.sh"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            **PLAIN,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "VENV": sys.prefix,
            "BYTEWAX_RECOVERY_DIRECTORY": str(lakehouse.recovery),
            "PKM_SNAPSHOT_SECONDS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lakehouse.processes.append(process)
    wait_until_read(lakehouse, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (first,) = children
    assert "NSpid:" in Path(f"/proc/{first}/status").read_text()
    assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
    assert b"bytewax.run" in Path(f"/proc/{first}/cmdline").read_bytes()
    announce(lakehouse, range(20, 30))
    assert_stops(process, send=lambda: os.kill(int(first), signal.SIGTERM))

    assert lakehouse.table("silver.metrics") == []
    shutil.rmtree(lakehouse.recovery)
    lakehouse.run_until_caught_up(**PLAIN)
    assert_nothing_lost_or_doubled(lakehouse, notes=30)
