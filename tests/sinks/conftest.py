"""Stores that several modules of tests write to."""

from __future__ import annotations

import pytest

from core.settings import Settings
from sinks import lance
from vectors import DIMENSION


@pytest.fixture
def store(settings: Settings) -> Settings:
    """Settings of an empty dataset of vectors."""
    lance.create_dataset(settings, dimension=DIMENSION)
    return settings
