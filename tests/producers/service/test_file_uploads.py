"""Files on their way to S3: whole where they belong, nothing where they do not, and leftovers found."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
import pytest

from core import aws
from core.errors import MissingError, UnreachableError
from core.settings import Settings
from producers.service.file_uploads import PART_BYTES, STAGING, FileUploads
from producers.service.leftovers import remove_leftovers

KEY = "bronze/raw/upload/some-event"
ATTRIBUTES = {"Content-Type": "text/plain", "note-id": "n"}


def with_uploads(settings: Settings, work: Callable[[FileUploads], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        uploads = FileUploads(settings, at_once=2)
        try:
            return await work(uploads)
        finally:
            await uploads.close(seconds=10)

    return asyncio.run(run())


def paths(settings: Settings, prefix: str = "") -> list[str]:
    return [entry["path"] for entry in obstore.list(aws.object_store(settings), prefix).collect()]


def unfinished(settings: Settings) -> int:
    return len(aws.s3_client(settings).list_multipart_uploads(Bucket=settings.bucket).get("Uploads", []))


def test_what_fits_one_part_is_kept_whole_and_not_sent(settings: Settings) -> None:
    content = os.urandom(PART_BYTES)

    async def work(uploads: FileUploads) -> None:
        upload = uploads.start()
        for start in range(0, len(content), 100_000):
            await upload.write(content[start : start + 100_000])
        assert upload.whole == content
        assert upload.sha256 == hashlib.sha256(content).digest()
        assert upload.sample == content[:8192]
        upload.discard()

    with_uploads(settings, work)
    assert paths(settings) == []
    assert unfinished(settings) == 0


def test_more_is_sent_in_parts_and_copied_to_its_place(settings: Settings) -> None:
    content = os.urandom(2 * PART_BYTES + 1)

    async def work(uploads: FileUploads) -> None:
        upload = uploads.start()
        for start in range(0, len(content), 1_000_000):
            await upload.write(content[start : start + 1_000_000])
        assert upload.whole is None
        await upload.place(KEY, attributes=ATTRIBUTES)
        upload.discard()

    with_uploads(settings, work)
    assert paths(settings) == [KEY]
    found = obstore.get(aws.object_store(settings), KEY)
    assert bytes(found.bytes()) == content
    assert found.attributes["Content-Type"] == "text/plain"
    assert found.attributes["note-id"] == "n"


def test_what_lies_in_its_place_already_is_left_alone(settings: Settings) -> None:
    obstore.put(aws.object_store(settings), KEY, b"there")

    async def work(uploads: FileUploads) -> None:
        upload = uploads.start()
        await upload.write(bytes(PART_BYTES + 1))
        await upload.place(KEY, attributes=ATTRIBUTES)

    with_uploads(settings, work)
    assert bytes(obstore.get(aws.object_store(settings), KEY).bytes()) == b"there"
    assert paths(settings) == [KEY]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_an_upload_that_is_discarded_leaves_nothing(settings: Settings, parts: int) -> None:
    async def work(uploads: FileUploads) -> None:
        upload = uploads.start()
        for _ in range(parts):
            await upload.write(bytes(PART_BYTES))
        upload.discard()
        upload.discard()

    with_uploads(settings, work)
    assert paths(settings) == []
    assert unfinished(settings) == 0


def test_what_is_only_compared_is_never_placed(settings: Settings) -> None:
    async def work(uploads: FileUploads) -> None:
        upload = uploads.start(keep=False)
        await upload.write(bytes(3 * PART_BYTES))
        assert upload.size_bytes == 3 * PART_BYTES
        assert upload.whole is None
        with pytest.raises(UnreachableError, match="send it again"):
            await upload.place(KEY, attributes=ATTRIBUTES)

    with_uploads(settings, work)
    assert paths(settings) == []


def test_a_missing_bucket_is_named(settings: Settings) -> None:
    async def work(uploads: FileUploads) -> None:
        with pytest.raises(MissingError, match='bucket "no-such-bucket" does not exist'):
            await uploads.start().write(bytes(PART_BYTES + 1))

    with_uploads(settings.model_copy(update={"bucket": "no-such-bucket"}), work)


def test_leftovers_are_removed_when_they_are_old_and_nothing_else(settings: Settings) -> None:
    client, store = aws.s3_client(settings), aws.object_store(settings)
    client.create_multipart_upload(Bucket=settings.bucket, Key=f"{STAGING}abandoned")
    client.create_multipart_upload(Bucket=settings.bucket, Key="others/upload")
    obstore.put(store, f"{STAGING}uncopied", b"a")
    obstore.put(store, "bronze/raw/upload/kept", b"a")
    time.sleep(1.1)
    # S3 tells whole seconds; the local AWS gives every unfinished upload a date of 2010.
    now = datetime.now(UTC).replace(microsecond=0)
    obstore.put(store, f"{STAGING}under-way", b"a")

    async def sweep(uploads: FileUploads) -> list[int]:
        return [await remove_leftovers(uploads, before=before) for before in (now, now, now + timedelta(hours=1))]

    assert with_uploads(settings, sweep) == [2, 0, 1]
    assert sorted(paths(settings)) == ["bronze/raw/upload/kept"]
    assert unfinished(settings) == 1
