"""Tells whether an address, or a request, is of this machine alone."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

__all__ = ["host_of", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Tell whether `host` is a loopback address; a name, even "localhost", is what some file or server says it is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """Return the host that a `Host` header names, without its port; empty for one that can't be read."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
