"""The process that parsers run in, for the tests of what reads documents; short pauses between tries to read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from operators import fetcher
from operators.formats import process
from operators.formats.process import Parsers


@pytest.fixture(scope="module")
def parsers() -> Iterator[Parsers]:
    with pytest.MonkeyPatch.context() as patch:
        # A minute by the clock, so that only the limit of CPU time can end a parser here.
        patch.setattr(process, "WALL_FACTOR", 60)
        made = Parsers(seconds=1.0)
    yield made
    made.close()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "BODY_BACKOFF_SECONDS", 0.005)
