"""The Lance dataset of the vectors: makes, opens and checks it, and turns pylance's errors into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lance
import tenacity

from core import aws
from core.errors import CommitError, MissingError, SettingsError, UnreachableError
from core.settings import Settings
from sinks.lance_rows import mismatch, schema_of

__all__ = [
    "attempts",
    "check_dataset",
    "check_dimension",
    "create_dataset",
    "dimension_of",
    "faults",
    "open_dataset",
]

LONGEST_WAIT_SECONDS = 5.0


def create_dataset(settings: Settings, *, dimension: int) -> None:
    """Create the dataset for vectors of `dimension` numbers unless it exists; safe to repeat and to race.

    Raises SettingsError when it exists with another dimension, UnreachableError when S3 does not answer.
    """
    try:
        check_dataset(settings, dimension=dimension)
    except MissingError:
        schema = schema_of(dimension)
        try:
            with faults(settings, "create"):
                lance.write_dataset(
                    schema.empty_table(),
                    settings.vectors_uri,
                    mode="create",
                    storage_options=aws.lance_storage_options(settings),
                )
        except CommitError:
            # Somebody else was faster; what they made must fit.
            check_dataset(settings, dimension=dimension)


def check_dataset(settings: Settings, *, dimension: int) -> None:
    """Check that the dataset exists and holds vectors of `dimension` numbers.

    Raises MissingError or SettingsError that say what to do, UnreachableError when S3 does not answer.
    """
    check_dimension(settings, open_dataset(settings), dimension)


def open_dataset(settings: Settings) -> lance.LanceDataset:
    """Open the newest version. Raises MissingError when there is none, UnreachableError when S3 does not answer."""
    with faults(settings, "open"):
        return lance.dataset(settings.vectors_uri, storage_options=aws.lance_storage_options(settings))


def dimension_of(dataset: lance.LanceDataset) -> int:
    """Return how many numbers a vector has."""
    return int(dataset.schema.field("embedding").type.list_size)


def check_dimension(settings: Settings, dataset: lance.LanceDataset, dimension: int) -> None:
    """Raise SettingsError when the vectors have another dimension."""
    if dimension_of(dataset) != dimension:
        raise SettingsError(mismatch(settings.vectors_uri, dimension_of(dataset), dimension))


def attempts(settings: Settings) -> Iterator[tenacity.AttemptManager]:
    """Try again, with full jitter, what raises CommitError or UnreachableError, for `settings.retry_seconds`."""
    return iter(
        tenacity.Retrying(
            # A process that slept within its first attempt looks once more: it may not be the writer any longer.
            stop=tenacity.stop_after_delay(settings.retry_seconds) & tenacity.stop_after_attempt(2),
            # Full jitter, so that two writers do not meet again and again.
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_SECONDS),
            retry=tenacity.retry_if_exception_type((CommitError, UnreachableError)),
            reraise=True,
        )
    )


@contextmanager
def faults(settings: Settings, doing: str) -> Iterator[None]:
    """Turn pylance's errors, which are built-in ones with a text, into ours."""
    uri = settings.vectors_uri
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        if "was not found" in text or "NoSuchBucket" in text:
            raise MissingError(f"{uri} does not exist: run `pkm init`") from error
        if "LanceError(IO)" in text or "Generic S3 error" in text:
            raise UnreachableError(f"{uri} can't be reached ({doing}): {_brief(text)}") from error
        raise CommitError(f"{uri} could not be changed ({doing}): {_brief(text)}") from error


def _brief(text: str) -> str:
    # The library adds the place in its own source after the message.
    return text.partition(", /")[0].splitlines()[0]
