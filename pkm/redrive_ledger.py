"""Remembers on S3 which dead letters were put on the stream again: one small object for each call.

dead-letters/redriven/TIME-ID.json      {"redriven_at": ..., "letters": [ids]}
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import obstore
import orjson
from obstore.exceptions import BaseError

from core import aws
from core.errors import MissingError, UnreachableError, reason
from core.settings import Settings

__all__ = ["read_ledger", "write_ledger"]

LEDGER = "dead-letters/redriven"


def read_ledger(settings: Settings) -> dict[str, datetime]:
    """Return which letters were redriven, and when last. Raises MissingError without a bucket, UnreachableError."""
    store = aws.object_store(settings)
    ledger: dict[str, datetime] = {}
    with _reaching(settings):
        for page in obstore.list(store, f"{LEDGER}/"):
            for entry in page:
                written = orjson.loads(bytes(obstore.get(store, entry["path"]).bytes()))
                time = datetime.fromisoformat(written["redriven_at"])
                ledger |= {name: max(time, ledger.get(name, time)) for name in written["letters"]}
    return ledger


def write_ledger(settings: Settings, letters: Sequence[str]) -> None:
    """Add letters that were redriven just now. Raises like `read_ledger`."""
    now = datetime.now(UTC)
    body = orjson.dumps({"redriven_at": now.isoformat(), "letters": list(letters)})
    with _reaching(settings):
        obstore.put(aws.object_store(settings), f"{LEDGER}/{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:12]}.json", body)


@contextmanager
def _reaching(settings: Settings) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f'there is no bucket "{settings.bucket}": run `pkm init`, or set PKM_BUCKET') from error
    except (BaseError, OSError) as error:
        raise UnreachableError(f"s3://{settings.bucket}/{LEDGER} can't be used: {reason(error)}") from error
