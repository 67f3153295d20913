"""A git repository as tests make it, and one run over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.settings import Settings
from git_servers import BareRepository
from producers.git.ingest import RepositorySummary, ingest
from producers.git.opening import repositories

FILES = 14


def made(root: Path, files: int) -> BareRepository:
    root.mkdir()
    repository = BareRepository(root / "notes.git")
    repository.commit({f"topics/{number % 7}/{number}.md": b"# Note %d\n" % number for number in range(files)})
    return repository


def run(address: str, settings: Settings, **options: Any) -> RepositorySummary:
    (summary,) = [ingest(each, settings=settings, **options) for each in repositories(address, settings=settings)]
    return summary
