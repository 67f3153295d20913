"""Runs `pkm ingest git` under strace over each way to a repository; nothing may be opened for writing outside memory.

    PYTHONPATH=.:tests .venv/bin/python tests/diskless/traced_git.py

Needs Debian's package strace, as `traced.py` beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from diskless.traced import CALLS, PKM, REPOSITORY, written
from git_servers import BareRepository, git_daemon, http_backend, ssh_program
from github_server import github_server
from pkm.stack import local_aws


def main() -> int:
    """Trace the first and a later run over each way; returns 1 when something was written elsewhere."""
    # The repository lies on a disk, where a read from it would be seen to write.
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        tempfile.TemporaryDirectory(dir="/tmp") as root,
        local_aws() as variables,
        git_daemon(Path(root)) as daemon,
        http_backend(Path(root)) as backend,
        github_server() as hub,
    ):
        ssh_program(Path(folder))
        repository = BareRepository(Path(root) / "notes.git")
        repository.git("config", "uploadpack.allowFilter", "true")
        repository.commit({f"docs/{number}.md": b"# Note %d\n" % number for number in range(20)})
        hub.repositories["ann/notes"] = repository
        environment = {
            **os.environ,
            **variables,
            "PKM_ALLOW_PRIVATE_ADDRESSES": "1",
            "PKM_GITHUB_URL": hub.url,
            "PATH": f"{folder}:{os.environ['PATH']}",
        }
        subprocess.run([PKM, "init"], cwd=REPOSITORY, env=environment, check=True)
        found: list[str] = []
        for address in (
            f"{daemon}/notes.git",
            f"{backend.url}/notes.git",
            f"git@127.0.0.1:{repository.path}",
            str(repository.path),
            "github:ann/notes",
        ):
            for run in ("first", "later"):
                log = Path(folder) / "calls"
                trace = ["strace", "--follow-forks", "--decode-fds=path", f"--trace={CALLS}", f"--output={log}"]
                command = [*trace, PKM, "ingest", "git", address, "--json"]
                done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE)
                lines = log.read_text(errors="replace").splitlines()
                # What stands for ssh notes its arguments, and the server that it runs here has a list of its own.
                own = [line for line in written(lines) if "/arguments" not in line and "shallow" not in line]
                print(
                    f"{run} run, {address}: {len(lines)} calls, {len(own)} write outside memory, {len(done.stdout)} B"
                )
                found += own if lines else ["strace saw nothing"]
                repository.commit({"docs/0.md": os.urandom(8).hex().encode()})
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
