"""Git repositories made in a moment, and real servers in front of them: git daemon, git http-backend, ssh."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FIRST_COMMIT_AT = 1_700_000_000
ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}

Changes = Mapping[str, bytes | str | None]
"""Content by path; text beginning with `160000 ` or `120000 ` is a mode and what it holds; None deletes."""


@dataclass
class BareRepository:
    """A bare repository whose commits are written by `git fast-import`: the same content has the same ids."""

    path: Path
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.path), folder=self.path.parent)

    def git(self, *arguments: str, content: bytes = b"", folder: Path | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder or self.path,
            env=ENVIRONMENT,
            input=content,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def read(self, object_id: str) -> bytes:
        command = ["git", "cat-file", "blob", object_id]
        return subprocess.run(command, cwd=self.path, env=ENVIRONMENT, capture_output=True, check=True).stdout

    def commit(self, changes: Changes, *, branch: str = "main", parent: str | None = None) -> str:
        """Commit on top of the branch, or of `parent`; returns the id."""
        at = FIRST_COMMIT_AT + 60 * len(self.commits)
        stream = [f"commit refs/heads/{branch}\n".encode()]
        stream.append(f"author Ann <ann@example.org> {at} +0200\n".encode())
        stream.append(f"committer Ann <ann@example.org> {at + 1} +0200\ndata 4\nwork\n".encode())
        if parent or self.commits:
            stream.append(f"from {parent or self.commits[-1]}\n".encode())
        for path, content in changes.items():
            stream.append(_change(path, content))
            if content is None:
                self.files.pop(path, None)
            elif isinstance(content, bytes):
                self.files[path] = content
        self.git("fast-import", "--quiet", "--force", content=b"".join(stream) + b"done\n")
        self.commits.append(self.git("rev-parse", branch))
        return self.commits[-1]


def _change(path: str, content: bytes | str | None) -> bytes:
    quoted = '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if content is None:
        return f"D {quoted}\n".encode()
    if isinstance(content, str):
        mode, _, value = content.partition(" ")
        if mode == "160000":
            return f"M 160000 {value} {quoted}\n".encode()
        return f"M {mode} inline {quoted}\ndata {len(value)}\n{value}\n".encode()
    return f"M 100644 inline {quoted}\ndata {len(content)}\n".encode() + content + b"\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def git_daemon(root: Path) -> Iterator[str]:
    """Serve the repositories below `root`; gives the address of the root."""
    port = free_port()
    process = subprocess.Popen(
        [
            *("git", "daemon", "--export-all", "--reuseaddr", f"--base-path={root}"),
            *("--listen=127.0.0.1", f"--port={port}", str(root)),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class HttpBackend:
    """git http-backend behind a small CGI server."""

    url: str
    requests: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    password: str | None = None
    """When set, `user:password` that is asked for."""
    first_protocol: bool = False
    """When set, the server knows no other protocol than the first one, as those of before 2018."""
    moved_to: str | None = None
    """When set, every request is redirected there."""


@contextmanager
def http_backend(root: Path) -> Iterator[HttpBackend]:
    """Serve the repositories below `root` over smart HTTP."""
    backend = HttpBackend("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def answer(self, body: bytes) -> None:
            backend.requests.append(f"{self.command} {self.path}")
            backend.authorizations.append(self.headers["Authorization"])
            if backend.moved_to:
                return self.reply(302, [("Location", backend.moved_to + self.path)], b"")
            wanted = backend.password and "Basic " + base64.b64encode(backend.password.encode()).decode()
            if wanted and self.headers["Authorization"] != wanted:
                return self.reply(401, [("WWW-Authenticate", "Basic")], b"")
            path, _, query = self.path.partition("?")
            variables = {
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers["Content-Type"] or "",
                "CONTENT_LENGTH": str(len(body)),
                "GIT_PROTOCOL": "" if backend.first_protocol else self.headers["Git-Protocol"] or "",
            }
            done = subprocess.run(
                ["git", "http-backend"],
                env={**ENVIRONMENT, **variables},
                input=body,
                capture_output=True,
                check=False,
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")]
            status = int(next((value for name, value in headers if name == "Status"), "200").split()[0])
            return self.reply(status, [pair for pair in headers if pair[0] != "Status"], content)

        def reply(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        backend.url = f"http://127.0.0.1:{port}"
        yield backend


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run an HTTP server on loopback; gives its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ssh_program(folder: Path) -> Path:
    """Write a program `ssh` that runs the command on this machine, and notes its arguments in `folder/arguments`.

    There is no ssh server where the tests run; the program stands where the real one would, the protocol is real.
    """
    program = folder / "ssh"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{folder}/arguments"\neval "command=\\${{$#}}"\nexec sh -c "$command"\n'
    )
    program.chmod(0o755)
    return program
