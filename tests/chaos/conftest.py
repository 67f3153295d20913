"""A lakehouse to kill flows in; `chaos` is importable here as it is in the children."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings, load_settings

sys.path.append(str(Path(__file__).parents[1]))


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A world of its own; what still runs at the end is killed."""
    from chaos.world import new_world

    monkeypatch.setenv("PKM_ENRICH", "none")
    load_settings.cache_clear()
    with new_world(load_settings(), seed=20261123) as made:
        yield made
