"""Kinesis servers on loopback that reshard as the real service does, which moto does not: kinesis-local, kinesalite.

    with running("kinesalite") as url: ...

`make servers` installs them; they need node. A test that finds them missing fails and says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from loopback import free_ports

__all__ = ["SERVERS", "running"]

SERVERS = ("kinesis-local", "kinesalite")
FOLDER = Path(__file__).parent / "servers"
START_SECONDS = 60.0
# As short as they can be: how long a stream takes to be created or resharded.
MILLISECONDS = ("--createStreamMs", "20", "--updateStreamMs", "20", "--deleteStreamMs", "20")


@contextlib.contextmanager
def running(server: str, *, shard_limit: int = 100) -> Iterator[str]:
    """Run a server on a port of its own while the block runs; gives its address."""
    node = shutil.which("node")
    assert node, "tests against a Kinesis that reshards need node 18 or newer, and it is not on PATH: install nodejs"
    folder = FOLDER / "node_modules" / server
    assert folder.is_dir(), f"{server} is not installed: run `make servers`"
    port, other = free_ports(2)
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    if server == "kinesalite":
        preloaded = ("--require", str(FOLDER / "outlive_clients.cjs"))
        command = [node, *preloaded, "cli.js", "--port", str(port), "--shardLimit", str(shard_limit), *MILLISECONDS]
    else:
        command = [node, "main.js"]
        environment |= {
            "KINESIS_MOCK_PLAIN_PORT": str(port),
            "KINESIS_MOCK_TLS_PORT": str(other),
            "SHARD_LIMIT": str(shard_limit),
            "CREATE_STREAM_DURATION": "20ms",
            "SPLIT_SHARD_DURATION": "20ms",
            "MERGE_SHARDS_DURATION": "20ms",
            "LOG_LEVEL": "ERROR",
        }
    with tempfile.TemporaryFile() as log:
        # Both find their own files by the working directory.
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(child, url, log)
            try:
                yield url
            finally:
                # A client sees nothing but a refused connection.
                assert child.poll() is None, f"{server} ended by itself: {_printed(log)}"
        finally:
            child.kill()
            child.wait()


def _wait_for(child: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                return
            except urllib.error.HTTPError:
                return  # it answers
            except OSError:
                time.sleep(0.05)
                continue
        raise AssertionError(f"the server ended: {_printed(log)}")
    raise AssertionError(f"nothing answers on {url} after {START_SECONDS} s")


def _printed(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-2000:]
