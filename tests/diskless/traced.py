"""Runs the flow under strace and names every file outside memory that it opens for writing; there should be none.

    .venv/bin/python tests/diskless/traced.py

Needs Debian's package strace, so it is no part of the suite, whose test runs the flow on a read-only system instead.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pkm.stack import local_aws

REPOSITORY = Path(__file__).parents[2]
PKM = Path(sys.executable).with_name("pkm")
CALLS = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate"
CHANGES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^\d+ +(creat|mkdir|rename|link|symlink|truncate)")
PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"([^"]*)"')
IN_MEMORY = ("/dev/shm/", "/proc/", "/dev/null", "/dev/tty", "/dev/urandom")


def written(lines: list[str]) -> Iterator[str]:
    """Give the calls that succeeded in writing outside memory."""
    for line in lines:
        if CHANGES.search(line) and " = -1 " not in line:
            for folder, name in PATH.findall(line):
                if not os.path.normpath(Path(folder or REPOSITORY) / name).startswith(IN_MEMORY):
                    yield line
                    break


def main() -> int:
    """Trace `pkm run` over this project's own documents; returns 1 when something was written elsewhere."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, local_aws() as variables:
        environment = {
            **os.environ,
            **variables,
            "PKM_RECOVERY_DIR": f"{folder}/recovery",
            "PKM_SNAPSHOT_SECONDS": "1",
        }
        log = Path(folder) / "calls"
        for arguments in (["init"], ["ingest", "files", "README.md", "docs"]):
            subprocess.run([PKM, *arguments], cwd=REPOSITORY, env=environment, check=True)
        trace = ["strace", "--follow-forks", "--decode-fds=path", f"--trace={CALLS}", f"--output={log}"]
        subprocess.run([*trace, PKM, "run", "--until-caught-up"], cwd=REPOSITORY, env=environment, check=True)
        lines = log.read_text(errors="replace").splitlines()
        found = list(written(lines))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(lines)} calls, {len(found)} of them write outside memory")
    return 1 if found or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
