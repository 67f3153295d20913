"""Logs are lines that command no terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from core.settings import Settings
from core.telemetry import configure_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_name_from_outside_stays_one_line_and_commands_nothing(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(Settings.model_validate({"log_format": log_format}))

    path = "a\x1b[2J\n2026-11-23 [error] forged\x9b31m"
    structlog.get_logger().warning("left alone", path=path)

    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert "\x1b" not in written
    assert "\x9b" not in written
    assert "forged" in written
    if log_format == "json":
        assert json.loads(written)["path"] == path
