"""The service as its own process, on a local AWS that the tests of a module share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from core.settings import Settings, load_settings
from served import Served, make_lake, serving


@pytest.fixture(scope="module")
def lake(aws_environment: dict[str, str]) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_lake(aws_environment, patch)
    load_settings.cache_clear()


@pytest.fixture(scope="module")
def served(lake: Settings) -> Iterator[Served]:
    """One service for the tests of a module."""
    with serving(lake) as service:
        yield service


@pytest.fixture
def serve(lake: Settings) -> Iterator[Callable[..., Served]]:
    """Start services that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **variables: stack.enter_context(serving(lake, *options, **variables))
