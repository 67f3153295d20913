"""A repository, a server that has it, and settings that allow loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from git_runs import FILES, made
from git_servers import BareRepository, HttpBackend, http_backend


@pytest.fixture
def repository(tmp_path: Path) -> BareRepository:
    """A commit of a few files."""
    return made(tmp_path / "srv", FILES)


@pytest.fixture
def private(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_private_addresses": True})


@pytest.fixture
def backend(repository: BareRepository) -> Iterator[HttpBackend]:
    with http_backend(repository.path.parent) as server:
        yield server
