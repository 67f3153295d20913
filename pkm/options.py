"""What the commands have in common: options, and settings that are ready to be used."""

from __future__ import annotations

import os
from typing import Annotated

import botocore.session
import typer
from botocore.exceptions import BotoCoreError

from core.errors import SettingsError, reason
from core.settings import Settings, load_settings
from core.telemetry import configure_logging

__all__ = ["AsJson", "configured_settings"]

ANSWER_SECONDS = 10.0
"""How long a person waits for an answer from a service that is not there."""

# Of what botocore finds, the object stores (Rust clients, which look for themselves) find the same.
_SHARED_METHODS = frozenset({"env", "assume-role-with-web-identity", "container-role", "iam-role"})

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def configured_settings(*, patient: bool = True) -> Settings:
    """Read the settings, let the logs be as they say, and look for AWS credentials.

    A command whose answer a person waits for is not `patient`: it retries for 10 seconds at most. Raises
    SettingsError.
    """
    settings = load_settings()
    configure_logging(settings)
    check_credentials()
    if not patient:
        settings = settings.model_copy(update={"retry_seconds": min(settings.retry_seconds, ANSWER_SECONDS)})
    return settings


def check_credentials() -> None:
    """Raise SettingsError when there are no AWS credentials, or none that every client can use."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return
    try:
        found = botocore.session.get_session().get_credentials()
    except BotoCoreError as error:
        raise SettingsError(f"AWS credentials can't be read: {reason(error)}") from error
    if found is None:
        raise SettingsError(
            "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`pkm stack` prints those"
            " of the local AWS), or give this machine a role"
        )
    if found.method not in _SHARED_METHODS:
        raise SettingsError(
            f"AWS credentials come from a profile ({found.method}), but only the environment and roles are read:"
            ' eval "$(aws configure export-credentials --format env)"'
        )
