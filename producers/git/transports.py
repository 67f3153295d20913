"""Connections to git servers for dulwich's protocol: https, ssh and git://, guarded, and bounded in size and time.

Addresses are checked as `producers.addresses` does. Nobody is asked for a password, and nothing is written down, not
even the key of a host.
"""

from __future__ import annotations

import base64
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import IO, Any

import httpx2
from dulwich.client import AbstractHttpGitClient, SSHGitClient, SSHVendor, SubprocessWrapper, TCPGitClient
from dulwich.protocol import Protocol

from core.errors import MissingError, SourceError, UnreachableError
from core.settings import Settings
from producers.addresses import check_host, connect
from producers.git.names import Location

__all__ = ["Budget", "HttpClient", "RefusedError", "SshClient", "TcpClient", "TooMuchError"]

# Refs, progress and framing, beside the pack.
OTHER_BYTES = 32 * 1024 * 1024
REDIRECTS = 3


class TooMuchError(SourceError):
    """A pack is larger than it may be."""


class RefusedError(SourceError):
    """A server did not give what it was asked for; `unknown` when it said that it has no such object."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


class Budget:
    """The time and bytes of one conversation, and the last of what the server said."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._seconds = settings.git_seconds
        self.deadline = time.monotonic() + settings.git_seconds
        self._bytes = settings.git_pack_bytes + OTHER_BYTES
        self.last = b""

    @property
    def seconds_left(self) -> float:
        """The time that is left."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise UnreachableError when the time is over."""
        if self.seconds_left <= 0:
            raise UnreachableError(
                f'"{self._name}" took longer than {self._seconds:g} s: set PKM_GIT_SECONDS, or try again later'
            )

    def spent(self, data: bytes) -> bytes:
        """Count what was received, and return it; raises when it is too much, or too late."""
        self.check()
        self._bytes -= len(data)
        if self._bytes < 0:
            raise TooMuchError(f'"{self._name}" sends more than it may: set PKM_GIT_PACK_BYTES')
        self.last = data
        return data


class HttpClient(AbstractHttpGitClient):
    """Git over http(s); credentials go to the origin that they were given for, and to no other."""

    def __init__(self, location: Location, http: httpx2.Client, budget: Budget) -> None:
        super().__init__(location.url, thin_packs=False)
        self._location, self._http, self._budget = location, http, budget

    def _http_request(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | Iterator[bytes] | None = None,
        raise_for_status: bool = True,  # noqa: ARG002 - the library's signature
    ) -> Any:
        self._budget.check()
        response = self._send(url, headers or {}, data)
        try:
            self._check_status(response)
            if data is None and not response.headers.get("Content-Type", "").startswith("application/x-git-"):
                # The library would go on with the other protocol, and read whatever files the server names.
                raise SourceError(f'"{self._location.name}" does not speak the smart protocol of git')
        except BaseException:
            response.close()
            raise
        answer = _Answer(response, url, self._budget)
        return answer, answer.read

    def _send(self, url: str, headers: dict[str, str], data: bytes | Iterator[bytes] | None) -> httpx2.Response:
        method = "GET" if data is None else "POST"
        target = httpx2.URL(url)
        for _ in range(REDIRECTS + 1):
            # An answer that is compressed once more would be a way to send more than is counted.
            own = {"Accept-Encoding": "identity", "Pragma": "no-cache", **headers, **self._credentials(target)}
            request = self._http.build_request(
                method, target, headers=own, content=data, extensions={"deadline": self._budget.deadline}
            )
            response = self._http.send(request, stream=True)
            if not response.has_redirect_location or method == "POST":
                return response
            response.close()
            following = target.join(response.headers["Location"])
            if target.scheme == "https" and following.scheme != "https":
                raise SourceError(f'"{self._location.name}" redirects to an address without TLS')
            target = following
        raise SourceError(f'"{self._location.name}" redirects more than {REDIRECTS} times')

    def _credentials(self, target: httpx2.URL) -> dict[str, str]:
        location = self._location
        own = httpx2.URL(location.url)
        same = (target.scheme, target.host, target.port) == (own.scheme, own.host, own.port)
        if not same or (location.user is None and location.password is None):
            return {}
        pair = f"{location.user or ''}:{location.password or ''}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}

    def _check_status(self, response: httpx2.Response) -> None:
        name, status = self._location.name, response.status_code
        if status in {401, 403}:
            raise MissingError(
                f'"{name}" is not for us (HTTP {status}): give user and password or token in the address, '
                "https://USER:TOKEN@…, or use ssh"
            )
        if status == 404:
            raise MissingError(f'there is no git repository at "{name}", or not for us (HTTP 404)')
        if status >= 500 or status == 429:
            raise UnreachableError(f'"{name}" is out of order (HTTP {status}): try again later')
        if status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
            raise RefusedError(f'"{name}" does not answer as a git server does (HTTP {status})')


class _Answer:
    """A response as the library wants it."""

    def __init__(self, response: httpx2.Response, url: str, budget: Budget) -> None:
        self._response, self._budget = response, budget
        self._chunks = response.iter_raw()
        self._rest = b""
        self.content_type = response.headers.get("Content-Type")
        final = str(response.url)
        self.redirect_location = "" if final == url else final
        self.status = response.status_code

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end."""
        parts: list[bytes] = []
        missing = size
        while missing > 0:
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._rest = self._budget.spent(chunk)
                continue
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._response.close()


class TcpClient(TCPGitClient):
    """Git on a bare connection: git://, which nothing protects."""

    def __init__(self, location: Location, settings: Settings, budget: Budget, stack: ExitStack) -> None:
        super().__init__(location.host, location.effective_port, thin_packs=False)
        self._settings, self._budget, self._stack = settings, budget, stack

    def _connect(
        self, cmd: bytes, path: str | bytes, protocol_version: int | None = None
    ) -> tuple[Protocol, Callable[[], bool], IO[bytes] | None]:
        connection = connect(self._host, self._port, settings=self._settings, timeout=self._settings.request_seconds)
        self._stack.callback(connection.close)
        _end_at(self._budget, self._stack, lambda: connection.shutdown(socket.SHUT_RDWR))
        reading = self._stack.enter_context(connection.makefile("rb"))
        self.protocol_version = 2 if protocol_version is None else protocol_version
        protocol = Protocol(
            lambda size: self._budget.spent(reading.read(size)), lambda data: connection.sendall(data)
        )
        path = path.encode() if isinstance(path, str) else path
        host = f"{self._host}:{self._port}".encode()
        protocol.send_cmd(b"git-" + cmd, path, b"host=" + host + b"\0\0version=%d\0" % self.protocol_version)
        return protocol, lambda: False, None


class SshClient(SSHGitClient):
    """Git on the other side of the machine's own ssh."""

    def __init__(self, location: Location, settings: Settings, budget: Budget, stack: ExitStack) -> None:
        vendor = _Ssh(settings, budget, stack)
        # No configuration of git is read: it could name another program.
        super().__init__(location.host, location.port, location.user, vendor=vendor, thin_packs=False)
        self._budget = budget

    def _connect(
        self, cmd: bytes, path: str | bytes, protocol_version: int | None = None
    ) -> tuple[Protocol, Callable[[], bool], IO[bytes] | None]:
        protocol, _, errors = super()._connect(cmd, path, protocol_version)
        read = protocol.read
        protocol.read = lambda size: self._budget.spent(read(size))
        return protocol, lambda: False, errors


class _Ssh(SSHVendor):
    """Runs the machine's ssh, which finds keys and known hosts where it always does, and asks nobody."""

    def __init__(self, settings: Settings, budget: Budget, stack: ExitStack) -> None:
        self._settings, self._budget, self._stack = settings, budget, stack

    def run_command(
        self,
        host: str,
        command: bytes,
        username: str | None = None,
        port: int | None = None,
        password: str | None = None,  # noqa: ARG002 - the library's signature; no password gets here
        key_filename: str | None = None,  # noqa: ARG002
        ssh_command: str | None = None,  # noqa: ARG002
        protocol_version: int | None = None,
    ) -> SubprocessWrapper:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": f"{self._settings.request_seconds:.0f}",
            "ServerAliveInterval": f"{self._settings.request_seconds:.0f}",
            "ServerAliveCountMax": "1",
            "UpdateHostKeys": "no",
            "ControlMaster": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "SetEnv": f"GIT_PROTOCOL=version={2 if protocol_version is None else protocol_version}",
            **self._where(host, port or 22),
        }
        arguments = ["ssh", "-T", "-x", *(f"-o{name}={value}" for name, value in options.items())]
        arguments += ["-p", str(port)] if port else []
        arguments += ["-l", username] if username else []
        try:
            process = subprocess.Popen(
                [*arguments, "--", host, command.decode("utf-8", "surrogateescape")],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise UnreachableError("there is no program ssh on this machine: install it, or use https") from error
        wrapper = SubprocessWrapper(process)
        self._stack.callback(_end, process)
        _end_at(self._budget, self._stack, process.kill)
        return wrapper

    def _where(self, host: str, port: int) -> dict[str, str]:
        if self._settings.allow_private_addresses:
            return {}
        # The program connects to the address that was checked, but looks for the key of the name.
        return {
            "HostName": check_host(host, port, settings=self._settings)[0],
            "HostKeyAlias": host if port == 22 else f"[{host}]:{port}",
            "CheckHostIP": "no",
            "ProxyCommand": "none",
            "ProxyJump": "none",
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()


def _end_at(budget: Budget, stack: ExitStack, end: Callable[[], object]) -> None:
    """Let `end` cut the connection when the time is over, however slowly the other side drips."""

    def cut() -> None:
        # It may be gone already.
        with suppress(OSError):
            end()

    timer = threading.Timer(budget.seconds_left, cut)
    timer.daemon = True
    timer.start()
    stack.callback(timer.cancel)
