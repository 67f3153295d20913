"""Public addresses for tests: connections to them arrive at servers on loopback, and attempts are written down."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

PUBLIC, OTHER_PUBLIC = "93.184.216.34", "93.184.216.35"


@dataclass
class Internet:
    """What is reachable at which public address and port, and the DNS in front of it."""

    routes: dict[tuple[str, int], int] = field(default_factory=dict)
    """Ports on loopback by public address and port."""
    names: dict[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Answers by name: the first one first, the last one ever after."""
    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        answers = self.names.get(host.lower())
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return list(answers[min(self.resolved.count(host), len(answers)) - 1])


@contextmanager
def public_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    """Let the standard library connect within the network that is given, and to nothing else."""
    internet = Internet()
    real = socket.create_connection

    def create_connection(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        internet.connected.append(address[:2])
        port = internet.routes.get(address[:2])
        if port is None:
            raise ConnectionRefusedError(111, "Connection refused")
        return real(("127.0.0.1", port), *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", create_connection)
        yield internet
