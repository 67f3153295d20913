"""Opens the repositories that an address stands for, each the way its address asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from core.settings import Settings
from producers.git.github import GitHubRepository, owned_repositories
from producers.git.ingest import Repository
from producers.git.local import LocalRepository
from producers.git.names import GITHUB, LOCAL, parse_location
from producers.git.remote import GitRepository

__all__ = ["repositories"]


def repositories(address: str, *, settings: Settings) -> Iterator[Repository]:
    """Open what `address` stands for, one after the other; each is closed when the next is asked for.

    It is one repository, or for `github:OWNER` all of that owner. Raises like `parse_location`, and what the
    repositories raise.
    """
    location = parse_location(address, settings=settings)
    if location.scheme == LOCAL:
        with closing(LocalRepository(location, settings=settings)) as local:
            yield local
    elif location.scheme == GITHUB:
        paths = [location.path]
        if "/" not in location.path:
            paths = owned_repositories(location.path, settings=settings)
        for path in paths:
            with closing(GitHubRepository(path, settings=settings)) as hosted:
                yield hosted
    else:
        with closing(GitRepository(location, settings=settings)) as remote:
            yield remote
