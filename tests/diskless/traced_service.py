"""Runs the HTTP service under strace while it takes in notes and files, and names what it writes outside memory.

    PYTHONPATH=tests .venv/bin/python tests/diskless/traced_service.py

There should be nothing. Needs Debian's package strace, like `traced.py` beside it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from traced import CALLS, PKM, REPOSITORY, written

from pkm.stack import local_aws

SECONDS = 60.0


def main() -> int:
    """Trace `pkm ingest serve` from its start to its end; returns 1 when something was written elsewhere."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, local_aws() as variables:
        environment = {**os.environ, **variables}
        subprocess.run([PKM, "init"], cwd=REPOSITORY, env=environment, check=True)
        calls, said = Path(folder) / "calls", Path(folder) / "said"
        trace = ["strace", "--follow-forks", "--decode-fds=path", f"--trace={CALLS}", f"--output={calls}"]
        command = [*trace, PKM, "ingest", "serve", "--port", "0", "--without-tokens"]
        with said.open("w") as output:
            traced = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=output)
            use(address_in(said))
            # The signal is for the service, not for strace.
            children = Path(f"/proc/{traced.pid}/task/{traced.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            code = traced.wait(SECONDS)
        lines = calls.read_text(errors="replace").splitlines()
        found = list(written(lines))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"pkm ingest serve ended with {code}: {len(lines)} calls, {len(found)} of them write outside memory")
    return 1 if found or not lines or code else 0


def address_in(said: Path) -> str:
    """Wait until the service says where it listens."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := re.search(r"serving (http://\S+),", said.read_text()):
            return found[1]
        time.sleep(0.1)
    raise TimeoutError(said.read_text())


def use(url: str) -> None:
    """Have it do all that it can: notes, files in one part and in several, states, health."""
    note = requests.post(f"{url}/v1/notes", json={"text": "# Note", "metadata": {"a": "long " * 300}}, timeout=60)
    answers = [note]
    for size in (1000, 15 * 1024 * 1024):
        files = {"file": ("a.bin", bytes(size))}
        answers.append(
            requests.post(f"{url}/v1/files", files=files, headers={"Idempotency-Key": str(size)}, timeout=60)
        )
    answers.append(requests.get(f"{url}/v1/notes/{note.json()['note_id']}", timeout=60))
    answers += [requests.get(f"{url}/{path}", timeout=60) for path in ("healthz", "docs", "openapi.json")]
    print("answers:", *(answer.status_code for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
