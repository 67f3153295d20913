"""Where a producer goes on: one small JSON object on S3 for each source it follows.

    producers/cursors/KIND/DIGEST.json      {"name": …, "value": {…}, "updated_at": …}

The digest is over the source's name, so that any name can be a key. A cursor is replaced only by whoever read its
newest version: of two runs over the same source at once, one fails and can be repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import obstore
import orjson
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from core import aws
from core.errors import FencedError, MissingError, UnreachableError, reason
from core.layout import CURSORS
from core.settings import Settings

if TYPE_CHECKING:
    from obstore import PutMode

__all__ = ["Cursor", "load_cursor", "save_cursor"]


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a producer remembers of the source `name`; `e_tag` is the version it was read from, None before any."""

    kind: str
    name: str
    value: Mapping[str, Any]
    e_tag: str | None

    @property
    def key(self) -> str:
        """The object's key in the product's bucket."""
        return f"{CURSORS}{self.kind}/{hashlib.sha256(self.name.encode()).hexdigest()[:32]}.json"


def load_cursor(settings: Settings, *, kind: str, name: str) -> Cursor:
    """Read where the producer `kind` (`git`, `web`, …) goes on with the source `name`; an empty value at first.

    Raises UnreachableError when S3 does not answer.
    """
    empty = Cursor(kind, name, {}, None)
    with _reaching(settings, empty.key):
        try:
            result = obstore.get(aws.object_store(settings), empty.key)
        except FileNotFoundError:
            return empty
        value = orjson.loads(bytes(result.bytes()))["value"]
        return Cursor(kind, name, value, result.meta["e_tag"])


def save_cursor(settings: Settings, cursor: Cursor, value: Mapping[str, Any]) -> Cursor:
    """Replace `cursor` by `value`, once everything before that place is announced; returns the new one.

    Raises FencedError when another run has moved the cursor since it was read, MissingError without a bucket,
    UnreachableError when S3 does not answer.
    """
    body = orjson.dumps({"name": cursor.name, "value": value, "updated_at": datetime.now(UTC)})
    mode: PutMode = "create" if cursor.e_tag is None else {"e_tag": cursor.e_tag}
    with _reaching(settings, cursor.key):
        try:
            result = obstore.put(aws.object_store(settings), cursor.key, body, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError) as error:
            raise FencedError(
                f'another run has ingested "{cursor.name}" meanwhile; what this one announced stays: run it again'
            ) from error
        except FileNotFoundError as error:
            raise MissingError(
                f'bucket "{settings.bucket}" does not exist: run `pkm init`, or set PKM_BUCKET'
            ) from error
    return Cursor(cursor.kind, cursor.name, value, result["e_tag"])


@contextmanager
def _reaching(settings: Settings, key: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise UnreachableError(f"s3://{settings.bucket}/{key} can't be used: {reason(error)}") from error
