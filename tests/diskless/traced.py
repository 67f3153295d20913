"""Runs the flow and producers under strace and names every file outside memory that they open for writing.

    PYTHONPATH=tests .venv/bin/python tests/diskless/traced.py

There should be none. Needs Debian's package strace, so it is no part of the suite, whose tests run on a read-only
system instead.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core import aws
from core.settings import Settings
from json_api import by_link, serving_api
from pkm.stack import local_aws
from web_site import html, web_site

REPOSITORY = Path(__file__).parents[2]
DROPPED = "dropped"
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
    """Trace producers and `pkm run` over documents; returns 1 when something was written elsewhere."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        local_aws() as variables,
        serving_api() as api,
        web_site() as site,
    ):
        api.answer = by_link
        site.pages |= {"/": html("home", "/a"), "/a": html("page a")}
        environment = {
            **os.environ,
            **variables,
            "PKM_RECOVERY_DIR": f"{folder}/recovery",
            "PKM_SNAPSHOT_SECONDS": "1",
            "PKM_ALLOW_PRIVATE_ADDRESSES": "1",
        }
        subprocess.run([PKM, "init"], cwd=REPOSITORY, env=environment, check=True)
        os.environ |= variables
        drop_objects()
        lines: list[str] = []
        for arguments in (
            ["ingest", "files", "README.md", "docs"],
            ["ingest", "s3", f"s3://{DROPPED}/inbox/"],
            ["ingest", "api", f"{api.url}/items", "--items", "$.data[*]", "--content", "$.text"],
            ["ingest", "web", site.url, "--depth", "1"],
            ["run", "--until-caught-up"],
        ):
            log = Path(folder) / "calls"
            trace = ["strace", "--follow-forks", "--decode-fds=path", f"--trace={CALLS}", f"--output={log}"]
            subprocess.run([*trace, PKM, *arguments], cwd=REPOSITORY, env=environment, check=True)
            seen = log.read_text(errors="replace").splitlines()
            print(f"pkm {' '.join(arguments)}: {len(seen)} calls")
            lines += seen
        found = list(written(lines))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(lines)} calls, {len(found)} of them write outside memory")
    return 1 if found or not lines else 0


def drop_objects() -> None:
    """Put documents where a producer finds them that others dropped."""
    s3 = aws.s3_client(Settings())
    s3.create_bucket(Bucket=DROPPED)
    for path in (REPOSITORY / "docs").glob("*.md"):
        s3.put_object(Bucket=DROPPED, Key=f"inbox/{path.name}", Body=path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
