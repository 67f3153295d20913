"""A local AWS on loopback: moto's server with Kinesis, S3 and Glue, in memory.

`serve` runs it in the foreground; `local_aws` runs it as a child that ends with its parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

from core.errors import MissingError, UnreachableError

__all__ = ["environment", "local_aws", "serve"]

HOST = "127.0.0.1"
START_SECONDS = 60.0
PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
CREDENTIALS = {
    # moto takes any; these are the documented throw-away values.
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def environment(port: int) -> dict[str, str]:
    """Return the variables that point every AWS client at the local stack on `port`, past any proxy."""
    variables = {"AWS_ENDPOINT_URL": f"http://{HOST}:{port}", **CREDENTIALS}
    if any(os.environ.get(name) for name in PROXIES):
        direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        variables |= dict.fromkeys(("NO_PROXY", "no_proxy"), f"{direct},{HOST}" if direct else HOST)
    return variables


def serve(port: int, *, until: threading.Event, on_ready: Callable[[dict[str, str]], None] | None = None) -> None:
    """Serve a local AWS on loopback `port` (0: any that is free) until the event is set.

    `on_ready` hears the variables that point clients at it once it listens. Raises UnreachableError when the port is
    taken, MissingError when moto is not installed.
    """
    try:
        from moto.server import ThreadedMotoServer
    except ModuleNotFoundError as error:
        raise MissingError(
            "the local AWS needs moto, which is not installed: pip install pkm-lakehouse[local]"
        ) from error

    # Asked first, because moto's server would wait for ever for a port that it can't have.
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UnreachableError(
                f"port {port} on {HOST} can't be used ({error.strerror}): choose another --port"
            ) from error
    # moto makes clients of its own: a profile of the user's, or a real endpoint, is not for them.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    _refuse_stale_updates_of_glue_tables()
    server = ThreadedMotoServer(ip_address=HOST, port=port, verbose=False)
    server.start()
    try:
        if on_ready:
            on_ready(environment(server.get_host_and_port()[1]))
        until.wait()
    finally:
        server.stop()


def _refuse_stale_updates_of_glue_tables() -> None:
    """Make moto compare the version that UpdateTable names, as AWS does: commits of Iceberg rely on it."""
    from moto.core.exceptions import JsonRESTError
    from moto.glue.responses import GlueResponse

    update = GlueResponse.update_table
    lock = threading.Lock()

    def update_unless_stale(self: GlueResponse) -> Any:
        asked = self.parameters
        with lock:
            expected = asked.get("VersionId")
            current = self.glue_backend.get_table(asked["DatabaseName"], asked["TableInput"]["Name"]).as_dict()
            if expected is not None and expected != current["VersionId"]:
                raise JsonRESTError(
                    "ConcurrentModificationException", "Update table failed due to concurrent modification"
                )
            return update(self)

    GlueResponse.update_table = update_unless_stale  # type: ignore[method-assign]


@contextlib.contextmanager
def local_aws() -> Iterator[dict[str, str]]:
    """Run a local AWS as a child process on a free port; gives the variables that point clients at it.

    The child ends when the block is left, and also when this process is killed: it watches its standard input.
    Raises UnreachableError when it does not start.
    """
    with tempfile.TemporaryFile() as complaints:
        # Not a pipe: nobody reads it while the child runs, and a full one would stop the child.
        child = subprocess.Popen(
            [sys.executable, "-m", "pkm.stack"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        try:
            port = _port_of(child)
            if port is None:
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
                raise UnreachableError(f"the local AWS did not start within {START_SECONDS:.0f} s: {last[0]}")
            yield environment(port)
        finally:
            child.terminate()
            child.communicate(timeout=30)


def _port_of(child: subprocess.Popen[bytes]) -> int | None:
    """Wait for the child to say its port; None when it ends, or takes too long, before."""
    if child.stdout is None or not select.select([child.stdout], [], [], START_SECONDS)[0]:
        return None
    said = child.stdout.readline().strip()
    return int(said) if said else None


def _serve_until_parent_ends() -> None:
    stop = threading.Event()

    def wait_for_parent() -> None:
        # Not sys.stdin: a thread that waits in it while the interpreter ends makes that crash.
        os.read(0, 1)
        stop.set()

    def say_port(variables: dict[str, str]) -> None:
        sys.stdout.write(variables["AWS_ENDPOINT_URL"].rpartition(":")[2] + "\n")
        sys.stdout.flush()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    serve(0, until=stop, on_ready=say_port)


if __name__ == "__main__":
    _serve_until_parent_ends()
