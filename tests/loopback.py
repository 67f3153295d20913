"""Ports of loopback that tests give to what they start."""

from __future__ import annotations

import socket
from contextlib import ExitStack

__all__ = ["cluster_addresses", "free_ports"]


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on; whoever is started takes them itself, after this."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def cluster_addresses(processes: int) -> str:
    """Return what Bytewax's option -a takes for so many processes on this machine."""
    return ";".join(f"127.0.0.1:{port}" for port in free_ports(processes))
