"""Objects that others drop on S3, picked up by listing: `s3://bucket/prefix`.

The cursor remembers which versions (key and ETag) were announced, 12 bytes for each object that is there: an object
that did not change is not announced again, a changed ETag is a new version of the same note. An object that is gone
is forgotten, but its note stays: nobody knows whether it was deleted or only moved to cheaper storage.

In the product's own bucket the record points at the object where it lies. From any other bucket the object is copied
first, by S3 itself where that is possible, since the flow reads one bucket only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError

from core import aws
from core.errors import MissingError, SettingsError, UnreachableError, reason
from core.layout import RAW, own_prefixes
from core.records import event_identity
from core.settings import Settings
from core.visible import visible
from producers.announce import announce_stored
from producers.content_types import content_type_of
from producers.cursors import load_cursor, save_cursor
from producers.items import LeftAlone, StoredObject, Summary, raw_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

__all__ = ["PickedUp", "pick_up"]

SOURCE_TYPE = "s3"
CURSOR = "s3"
# The cursor is saved after so many announcements, so that a run that is killed loses no more than their listing.
CHUNK = 5_000
DIGEST_BYTES = 12


@dataclass(frozen=True, slots=True)
class PickedUp(Summary):
    """What a run did; `uploaded` are the objects that were copied, `unchanged` those that were announced before."""

    unchanged: int = 0


@dataclass(frozen=True, slots=True)
class _Listed:
    bucket: str
    key: str
    e_tag: str
    size: int
    modified: datetime

    @property
    def identity(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(f"{self.e_tag}\0{self.key}".encode()).digest()[:DIGEST_BYTES]

    @property
    def event_id(self) -> str:
        # What the listing tells of the content is its ETag.
        return event_identity(SOURCE_TYPE, self.identity, f"etag:{self.e_tag}:{self.size}".encode())


def pick_up(
    address: str,
    *,
    settings: Settings,
    from_start: bool = False,
    on_progress: Callable[[int], None] | None = None,
    on_left_alone: LeftAlone,
) -> PickedUp:
    """Announce what is new or changed below `address` since the last run; `from_start` announces everything.

    Left alone, with the reason given to `on_left_alone(address, reason)`: objects above `settings.max_object_bytes`,
    those whose keys the flow can't read, and those that change while they are copied; the next run tries again.

    Raises SettingsError for an address that is none or lies among the product's own objects, MissingError without the
    bucket, UnreachableError when S3 or Kinesis does not do its part, FencedError when another run over the same
    prefix was faster. After an error, the same run once more completes it.
    """
    bucket, prefix = _parse(address, settings)
    cursor = load_cursor(settings, kind=CURSOR, name=f"s3://{bucket}/{prefix}")
    known = set() if from_start else _digests(cursor.value.get("versions", ""))
    client = aws.s3_client(settings, connections=settings.fetch_concurrency)
    run = _Run(client, settings, known, on_left_alone)
    changed = run.changed(bucket, prefix)
    total = Summary()
    while chunk := list(islice(changed, CHUNK)):
        total += run.announce(chunk, on_progress)
        # What is not listed yet may be known from before.
        cursor = save_cursor(settings, cursor, {"versions": _text(run.announced | known)})
    if run.announced != known:
        save_cursor(settings, cursor, {"versions": _text(run.announced)})
    there = total.announced - run.copied
    return PickedUp(
        total.announced,
        run.copied,
        there,
        total.content_bytes,
        total.by_content_type,
        left_alone=run.left_alone,
        unchanged=run.unchanged,
    )


class _Run:
    """One listing, and what became of it; `announced` are the digests of the listed versions that are announced."""

    def __init__(self, client: S3Client, settings: Settings, known: Set[bytes], on_left_alone: LeftAlone) -> None:
        self._client, self._settings, self._known, self._on_left_alone = client, settings, known, on_left_alone
        self._store = aws.object_store(settings)
        self.announced: set[bytes] = set()
        self.copied = self.unchanged = self.left_alone = 0

    def changed(self, bucket: str, prefix: str) -> Iterator[_Listed]:
        for listed in _listed(self._client, self._settings, bucket, prefix):
            if listed.digest in self._known:
                self.unchanged += 1
                self.announced.add(listed.digest)
            elif not _is_nothing(listed, self._settings):
                refusal = _refusal(listed, self._settings)
                if refusal is None:
                    yield listed
                else:
                    self._leave(listed, refusal)

    def announce(self, chunk: list[_Listed], on_progress: Callable[[int], None] | None) -> Summary:
        if chunk[0].bucket != self._settings.bucket:
            chunk = self._copied(chunk)
        summary = announce_stored(
            (_stored(listed, self._settings) for listed in chunk), settings=self._settings, on_progress=on_progress
        )
        self.announced.update(listed.digest for listed in chunk)
        return summary

    def _copied(self, chunk: list[_Listed]) -> list[_Listed]:
        """Copy what is not in the product's bucket yet; returns what is there then."""
        with ThreadPoolExecutor(self._settings.fetch_concurrency, thread_name_prefix="copies") as executor:
            try:
                outcomes = list(executor.map(self._copy, chunk))
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
        for listed, outcome in zip(chunk, outcomes, strict=True):
            if outcome is None:
                self._leave(listed, "changed while it was copied")
        self.copied += sum(outcome is True for outcome in outcomes)
        return [listed for listed, outcome in zip(chunk, outcomes, strict=True) if outcome is not None]

    def _copy(self, listed: _Listed) -> bool | None:
        """Copy one object; False when it was there before, None when the source is not what was listed any more."""
        target = raw_key(SOURCE_TYPE, listed.event_id)
        with _reaching(self._settings, listed.bucket):
            try:
                obstore.head(self._store, target)
            except FileNotFoundError:
                pass
            else:
                return False
            try:
                self._copy_to(target, listed)
            except ClientError as error:
                if _has_changed(error):
                    return None
                raise
        return True

    def _copy_to(self, target: str, listed: _Listed) -> None:
        source: CopySourceTypeDef = {"Bucket": listed.bucket, "Key": listed.key}
        try:
            self._client.copy_object(
                Bucket=self._settings.bucket, Key=target, CopySource=source, CopySourceIfMatch=listed.e_tag
            )
        except ClientError as error:
            if _has_changed(error):
                raise
            # Not every store copies between buckets, and not across every border.
            found = self._client.get_object(Bucket=listed.bucket, Key=listed.key, IfMatch=listed.e_tag)
            obstore.put(self._store, target, found["Body"].read(), use_multipart=False)

    def _leave(self, listed: _Listed, why: str) -> None:
        self.left_alone += 1
        self._on_left_alone(listed.identity, why)


def _parse(address: str, settings: Settings) -> tuple[str, str]:
    parts = urlsplit(address, allow_fragments=False)
    prefix = address.partition("://")[2].partition("/")[2]
    if parts.scheme != "s3" or not parts.netloc:
        raise SettingsError(f'"{visible(address)}" is no place on S3: give s3://BUCKET or s3://BUCKET/PREFIX')
    own = (*own_prefixes(settings), RAW)
    if parts.netloc == settings.bucket and prefix and f"{prefix.rstrip('/')}/".startswith(own):
        raise SettingsError(
            f'"{visible(address)}" holds the product\'s own objects ({", ".join(own)}): let documents be dropped '
            "under another prefix"
        )
    return parts.netloc, prefix


def _listed(client: S3Client, settings: Settings, bucket: str, prefix: str) -> Iterator[_Listed]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    with _reaching(settings, bucket):
        for page in pages:
            for entry in page.get("Contents", ()):
                yield _Listed(bucket, entry["Key"], entry["ETag"], entry["Size"], entry["LastModified"])


@contextmanager
def _reaching(settings: Settings, bucket: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            raise MissingError(f'bucket "{bucket}" or "{settings.bucket}" does not exist') from error
        raise UnreachableError(f'bucket "{bucket}" can\'t be read: {reason(error)}') from error
    except (BotoCoreError, BaseError, OSError) as error:
        where = aws.endpoint("s3") or f"AWS in {aws.region(settings)}"
        raise UnreachableError(f'bucket "{bucket}" at {where} can\'t be read: {reason(error)}') from error


def _is_nothing(listed: _Listed, settings: Settings) -> bool:
    """Tell whether it is what a console makes for an empty folder, or the product's own."""
    own = listed.bucket == settings.bucket and listed.key.startswith((*own_prefixes(settings), RAW))
    return own or (listed.size == 0 and listed.key.endswith("/"))


def _refusal(listed: _Listed, settings: Settings) -> str | None:
    if listed.size > settings.max_object_bytes:
        return f"is larger than {settings.max_object_bytes:,} bytes (PKM_MAX_OBJECT_BYTES)"
    segments = listed.key.split("/")
    if listed.bucket == settings.bucket and (
        any(segment in {"", ".", ".."} for segment in segments) or not listed.key.isprintable()
    ):
        return "has an empty, dotted or unprintable segment in its key, which the flow can't read"
    return None


def _stored(listed: _Listed, settings: Settings) -> StoredObject:
    own = listed.bucket == settings.bucket
    return StoredObject(
        source_type=SOURCE_TYPE,
        identity=listed.identity,
        event_id=listed.event_id,
        s3_key=listed.key if own else raw_key(SOURCE_TYPE, listed.event_id),
        content_size=listed.size,
        content_type=content_type_of(listed.key.rpartition("/")[2]),
        metadata={
            "path": listed.key,
            "bucket": listed.bucket,
            "etag": listed.e_tag.strip('"'),
            "last_modified": listed.modified.isoformat(timespec="seconds"),
        },
    )


def _has_changed(error: ClientError) -> bool:
    return error.response["Error"]["Code"] in {"PreconditionFailed", "412", "NoSuchKey", "404"}


def _digests(text: str) -> set[bytes]:
    data = base64.b64decode(text)
    return {data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)}


def _text(digests: Set[bytes]) -> str:
    return base64.b64encode(b"".join(sorted(digests))).decode()
