"""The identity of a page and the site that it belongs to. Pure functions."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import httpx2
from w3lib.url import canonicalize_url

from core.errors import ForbiddenAddressError
from producers.addresses import check_url

__all__ = ["MAX_CHARACTERS", "identity_of", "link_target", "site_of"]

MAX_CHARACTERS = 2_048
# Added by newsletters and advertisers; they tell where a reader came from, not what the page is.
_TRACKING = re.compile(r"(?:^|&)(?:utm_[a-z_]+|gclid|fbclid|msclkid|dclid|mc_eid)=[^&]*", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def identity_of(url: httpx2.URL) -> str:
    """Return the address by which a page is known: the same for all the ways to write it that can't differ.

    Without fragment, default port, final dot of the host and tracking parameters; scheme and host in small letters,
    dot segments resolved, escapes written alike, parameters sorted. The scheme stays, and so does a final slash: a
    server may answer differently.
    """
    query = _TRACKING.sub("", url.query.decode("ascii")).removeprefix("&")
    plain = url.copy_with(fragment=None, host=_host(url), query=query.encode() or None)
    return canonicalize_url(str(plain))


def site_of(url: httpx2.URL) -> str:
    """Return the host without `www.`, and the port unless it is a scheme's own: http and https are one site."""
    host = _host(url).removeprefix("www.")
    port = url.port or _DEFAULT_PORTS[url.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port in _DEFAULT_PORTS.values() else f"{bracketed}:{port}"


def link_target(base: str, href: str) -> httpx2.URL | None:
    """Return where a link leads to, without its fragment; None for what is no page of the web or is too long."""
    # Browsers drop these, within a link too.
    href = re.sub(r"[\t\r\n]", "", href.strip())
    if not href or href.startswith("#") or len(href) > MAX_CHARACTERS:
        return None
    try:
        target = check_url(urljoin(base, href)).copy_with(fragment=None)
    except (ForbiddenAddressError, ValueError):
        return None
    return target if len(str(target)) <= MAX_CHARACTERS else None


def _host(url: httpx2.URL) -> str:
    return url.raw_host.decode("ascii").removesuffix(".")
