"""What a person types for a repository, and the name under which its notes are known on every machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from core.errors import SourceError, reason
from core.settings import Settings
from core.visible import visible

__all__ = ["GITHUB", "LOCAL", "Location", "github_name", "parse_location"]

LOCAL, GITHUB = "local", "github"
_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
# Nobody can read along on these, and nobody can answer in the server's place.
_SAFE = frozenset({"https", "ssh"})
# As git has it: a colon before any slash makes it a host and a path on it.
_SCP = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^@/:\[\]]+):(?P<path>(?!//|:).+)", re.DOTALL)
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,254}")
_GITHUB_PART = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
LONGEST_NAME = 1_000


@dataclass(frozen=True, slots=True)
class Location:
    """Where a repository is. `name` has neither scheme nor credentials: it is part of the notes' identity.

    `scheme` is https, http, ssh, git, `local` (then `path` is absolute) or `github` (then `path` is `OWNER/NAME`, or
    `OWNER` for all repositories of that owner).
    """

    scheme: str
    path: str
    name: str
    host: str = ""
    port: int | None = None
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def effective_port(self) -> int:
        """The port to connect to."""
        return self.port or _PORTS[self.scheme]

    @property
    def url(self) -> str:
        """The address without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{f':{self.port}' if self.port else ''}{self.path}"


def parse_location(text: str, *, settings: Settings) -> Location:
    """Read a URL (https, ssh, file, and http or git where private hosts are allowed), `user@host:path`, a local path,
    `github:OWNER/NAME` or `github:OWNER`.

    Over ssh and https, with and without user, default port and `.git`, a repository has the same name; a local one is
    named by its absolute path. Raises SourceError, whose message has no credentials, for anything else.
    """
    if _UNPRINTABLE.search(text) or len(text) > LONGEST_NAME:
        raise SourceError(f"a repository's address has control characters, or more than {LONGEST_NAME} characters")
    if text.startswith("github:"):
        return _github(text.removeprefix("github:"), settings)
    if "://" in text:
        return _from_url(text, settings)
    scp = _SCP.fullmatch(text)
    if scp:
        if "@" in scp["path"].partition("/")[0]:
            # Perhaps a password, so nothing of it is shown.
            raise SourceError("the repository's address has a user, but no protocol: write https:// before it")
        host = scp["host"].strip("[]")
        return _remote("ssh", host, None, scp["path"], scp["user"], None)
    if "::" in text.partition("/")[0]:
        raise SourceError(
            f'"{visible(text)}" would run a program of its own: use https, ssh, a path or github:OWNER/NAME'
        )
    return _local(text)


def github_name(settings: Settings, path: str) -> str:
    """Name a repository of the configured GitHub as it is called over git: the API's host without `api.`."""
    parts = _split(settings.github_url)
    if parts is None or not parts.hostname or parts.scheme not in {"http", "https"}:
        raise SourceError(f'PKM_GITHUB_URL="{settings.github_url}" is not a web address')
    return _name(parts.scheme, parts.hostname.removeprefix("api."), parts.port, path)


def _github(text: str, settings: Settings) -> Location:
    parts = text.removeprefix("//").strip("/").removesuffix(".git").split("/")
    if len(parts) > 2 or not all(_GITHUB_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise SourceError(f'"github:{visible(text)}" is not github:OWNER/NAME, nor github:OWNER for all of an owner')
    path = "/".join(parts)
    return Location(GITHUB, path, github_name(settings, path))


def _from_url(text: str, settings: Settings) -> Location:
    parts = _split(text)
    if parts is None:
        # Nothing of it is shown: who knows where a password is in what can't be parsed.
        raise SourceError("the repository's address is not a URL: write https://host/path, ssh://host/path or a path")
    if parts.scheme == "file":
        if parts.hostname not in {None, "localhost"}:
            raise SourceError("a file:// address names a host: only this machine's files can be read")
        return _local(unquote(parts.path))
    if parts.scheme not in _PORTS:
        raise SourceError(
            f'"{visible(parts.scheme)}" is not a way to a repository: use https, ssh, file or github:OWNER/NAME'
        )
    if parts.scheme not in _SAFE and not settings.allow_private_addresses:
        raise SourceError(
            f"{parts.scheme}:// is not protected against anybody in between: use https or ssh, or set "
            "PKM_ALLOW_PRIVATE_ADDRESSES=1"
        )
    user, password = (unquote(part) if part is not None else None for part in (parts.username, parts.password))
    return _remote(parts.scheme, parts.hostname or "", parts.port, parts.path, user, password)


def _remote(scheme: str, host: str, port: int | None, path: str, user: str | None, password: str | None) -> Location:
    name = _name(scheme, host, port, path)
    if not host or host.startswith("-") or not name.rpartition("/")[2]:
        raise SourceError(f'"{visible(name)}" has no host, or no path of a repository on it')
    if scheme == "ssh":
        # Both become arguments of a program.
        if (user is not None and not _USER.fullmatch(user)) or path.startswith("-"):
            raise SourceError(f'the user or the path of "{visible(name)}" can\'t be given to ssh')
        if password is not None:
            raise SourceError(f'the address of "{visible(name)}" has a password, which ssh does not take: use a key')
    return Location(scheme, path, name, host.lower(), port, user, password)


def _name(scheme: str, host: str, port: int | None, path: str) -> str:
    shown_port = "" if port is None or port == _PORTS[scheme] else f":{port}"
    clean = re.sub("/+", "/", unquote(path)).strip("/").removesuffix(".git").rstrip("/")
    return f"{host.lower()}{shown_port}/{clean}"


def _local(text: str) -> Location:
    try:
        path = Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise SourceError(f'"{visible(text)}" is no path: {reason(error)}') from error
    if path.name == ".git":
        path = path.parent
    name = path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Location(LOCAL, str(path), name)


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        return parts if parts.port != 0 else None
    except ValueError:
        return None
