"""A lakehouse whose flow reaches AWS through a proxy that makes faults; the test itself reaches it directly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.world import World, new_world
from core.settings import Settings
from faults.proxy import FaultProxy, fault_proxy

# Short enough for a test; a local AWS on busy cores needs some time for a request, too.
PATIENCE = {"PKM_REQUEST_SECONDS": "3", "PKM_RETRY_SECONDS": "30"}


@pytest.fixture
def proxy(aws_environment: dict[str, str]) -> Iterator[FaultProxy]:
    """A proxy in front of the local AWS, without rules yet."""
    with fault_proxy(aws_environment["AWS_ENDPOINT_URL"]) as running:
        yield running


@pytest.fixture
def world(settings: Settings, proxy: FaultProxy) -> Iterator[World]:
    """A lakehouse whose processes are sent through the proxy."""
    with new_world(settings.model_copy(update={"enrich": "none"}), seed=11) as made:
        made.variables |= {"AWS_ENDPOINT_URL": proxy.url, **PATIENCE}
        yield made
