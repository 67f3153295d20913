"""What the commands have in common: options, and settings that are ready to be used."""

from __future__ import annotations

from typing import Annotated

import typer

from core.settings import Settings, load_settings
from core.telemetry import configure_logging

__all__ = ["AsJson", "configured_settings"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def configured_settings() -> Settings:
    """Read the settings, and let the logs be as they say. Raises SettingsError."""
    settings = load_settings()
    configure_logging(settings)
    return settings
