"""Stores that several modules of tests write to."""

from __future__ import annotations

import pytest

from core.settings import Settings
from sinks import iceberg_catalog, lance
from sinks.iceberg_tables import BRONZE_FAILURES, SILVER_METRICS
from vectors import DIMENSION


@pytest.fixture
def store(settings: Settings) -> Settings:
    """Settings of an empty dataset of vectors."""
    lance.create_dataset(settings, dimension=DIMENSION)
    return settings


@pytest.fixture
def tables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the tables that are used here: creating them takes most of the time of a test.
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_FAILURES, SILVER_METRICS))
    iceberg_catalog.create_tables(settings)
