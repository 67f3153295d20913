"""A local AWS on loopback: moto's server with Kinesis, S3 and Glue, in memory.

`serve` runs it in the foreground; `local_aws` runs it as a child that ends with its parent.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import botocore.session
from botocore.config import Config

from core.errors import UnreachableError

__all__ = ["environment", "local_aws", "serve"]

HOST = "127.0.0.1"
START_SECONDS = 60.0
CREDENTIALS = {
    # moto takes any; these are the documented throw-away values.
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def environment(port: int) -> dict[str, str]:
    """Return the variables that point every AWS client at the local stack on `port`."""
    return {"AWS_ENDPOINT_URL": f"http://{HOST}:{port}", **CREDENTIALS}


def serve(port: int, *, until: threading.Event) -> None:
    """Serve a local AWS on loopback `port` until the event is set.

    Raises UnreachableError when the port is taken.
    """
    from moto.server import ThreadedMotoServer

    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UnreachableError(
                f"port {port} on {HOST} can't be used ({error.strerror}): choose another --port"
            ) from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=HOST, port=port, verbose=False)
    server.start()
    try:
        until.wait()
    finally:
        server.stop()


@contextlib.contextmanager
def local_aws(port: int | None = None) -> Iterator[dict[str, str]]:
    """Run a local AWS as a child process; gives the variables that point clients at it.

    The child ends when the block is left, and also when this process is killed: it watches its standard input.
    """
    port = port or _free_port()
    child = subprocess.Popen(
        [sys.executable, "-m", "pkm.stack", "--port", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    variables = environment(port)
    try:
        _wait_until_it_answers(child, variables["AWS_ENDPOINT_URL"])
        yield variables
    finally:
        child.terminate()
        child.communicate(timeout=30)


def _wait_until_it_answers(child: subprocess.Popen[bytes], url: str) -> None:
    session = botocore.session.get_session()
    session.set_credentials(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    client = session.create_client(
        "s3",
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        endpoint_url=url,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            port = int(url.rpartition(":")[2])
            with socket.create_connection((HOST, port), timeout=1):
                client.list_buckets()  # type: ignore[attr-defined]
                return
        time.sleep(0.1)
    child.kill()
    _, errors = child.communicate()
    last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no answer"]
    raise UnreachableError(f"the local AWS did not start on {url}: {last[0]}")


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _serve_until_parent_ends() -> None:
    parser = argparse.ArgumentParser(prog="python -m pkm.stack")
    parser.add_argument("--port", type=int, required=True)
    stop = threading.Event()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    serve(parser.parse_args().port, until=stop)


if __name__ == "__main__":
    _serve_until_parent_ends()
