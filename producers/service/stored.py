"""What the service remembers between requests, as small JSON objects on S3: idempotency keys and receipts.

    producers/service/keys/DIGEST.json        what came with an idempotency key, and what was answered
    producers/service/receipts/NOTE.json      the version of a note that was accepted last

Replicas share them. They may be removed after some days, as docs/producers.md says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import obstore
import orjson
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from core.errors import MissingError, UnreachableError, reason
from core.layout import SERVICE
from core.settings import Settings

__all__ = ["Key", "Receipt", "Stored"]


@dataclass(frozen=True, slots=True)
class Key:
    """What came with an idempotency key: a digest of the request, the ids that it has, and whether it is done."""

    request_digest: str
    note_id: str
    event_id: str
    done: bool
    e_tag: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The version of a note that was accepted last, and where the stream has it."""

    note_id: str
    event_id: str
    accepted_at: datetime
    shard_id: str
    sequence_number: str

    def to_json(self) -> bytes:
        """Write it as it is stored."""
        return orjson.dumps(
            {
                "note_id": self.note_id,
                "event_id": self.event_id,
                "accepted_at": self.accepted_at,
                "shard_id": self.shard_id,
                "sequence_number": self.sequence_number,
            }
        )

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what `to_json` wrote."""
        value: dict[str, Any] = orjson.loads(text)
        return cls(**{**value, "accepted_at": datetime.fromisoformat(value["accepted_at"])})


class Stored:
    """Reads and writes them; every method raises UnreachableError when S3 does not answer after retries."""

    def __init__(self, store: S3Store, settings: Settings) -> None:
        self._store = store
        self._bucket = settings.bucket

    async def key(self, owner: str, name: str) -> Key | None:
        """Return what came with the key `name` of `owner` before, None when nothing did."""
        found = await self._read(_key_path(owner, name))
        if found is None:
            return None
        value: dict[str, Any] = orjson.loads(found[0])
        return Key(**value, e_tag=found[1])

    async def begin(self, owner: str, name: str, key: Key) -> Key:
        """Keep `key` under the name unless there is one: of several replicas, all get the first one's."""
        body = _key_body(key)
        path = _key_path(owner, name)
        # Another may remove its own between our two steps, though not for ever.
        while True:
            with self._reaching(path):
                try:
                    put = await obstore.put_async(self._store, path, body, mode="create", use_multipart=False)
                except AlreadyExistsError:
                    pass
                else:
                    return Key(key.request_digest, key.note_id, key.event_id, key.done, put["e_tag"])
            known = await self.key(owner, name)
            if known is not None:
                return known

    async def finish(self, owner: str, name: str, key: Key) -> None:
        """Say that the request of this key is done, unless somebody has."""
        path = _key_path(owner, name)
        body = _key_body(Key(key.request_digest, key.note_id, key.event_id, done=True))
        with self._reaching(path):
            try:
                await obstore.put_async(self._store, path, body, mode={"e_tag": key.e_tag}, use_multipart=False)
            except (PreconditionError, FileNotFoundError):
                # The same request at the same time, and it was faster.
                return

    async def receipt(self, note_id: str) -> Receipt | None:
        """Return the receipt of a note, None when no version of it came this way."""
        found = await self._read(_receipt_path(note_id))
        return None if found is None else Receipt.from_json(found[0])

    async def keep(self, receipt: Receipt) -> None:
        """Keep the receipt in place of an earlier one."""
        path = _receipt_path(receipt.note_id)
        with self._reaching(path):
            await obstore.put_async(self._store, path, receipt.to_json(), use_multipart=False)

    async def _read(self, path: str) -> tuple[bytes, str | None] | None:
        with self._reaching(path):
            try:
                found = await obstore.get_async(self._store, path)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
            return bytes(await found.bytes_async()), found.meta["e_tag"]

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingError(
                f'bucket "{self._bucket}" does not exist: run `pkm init`, or set PKM_BUCKET'
            ) from error
        except (BaseError, OSError) as error:
            raise UnreachableError(f"s3://{self._bucket}/{path} can't be used: {reason(error)}") from error


def _key_path(owner: str, name: str) -> str:
    # Names of keys are any text; one owner's are not another's.
    return f"{SERVICE}keys/{hashlib.sha256(f'{owner} {name}'.encode()).hexdigest()}.json"


def _receipt_path(note_id: str) -> str:
    return f"{SERVICE}receipts/{note_id}.json"


def _key_body(key: Key) -> bytes:
    return orjson.dumps(
        {"request_digest": key.request_digest, "note_id": key.note_id, "event_id": key.event_id, "done": key.done}
    )
