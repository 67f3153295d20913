"""Removes uploads from S3 that nobody finished: a process was killed, or S3 did not answer when they were undone.

A rule of the bucket may do the same (docs/producers.md); this one also tells of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from core.errors import MissingError, UnreachableError
from producers.service import figures
from producers.service.file_uploads import STAGING, FileUploads

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["remove_leftovers", "sweep_now_and_then"]

OLD = timedelta(days=1)
"""No upload takes so long."""
SWEEP_SECONDS = 3600.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


async def sweep_now_and_then(uploads: FileUploads) -> None:
    """Sweep at once and every hour, until cancelled; a fault is told and the next sweep tries again."""
    while True:
        try:
            count = await remove_leftovers(uploads, before=datetime.now(UTC) - OLD)
            if count:
                _log.warning("uploads that nobody finished were removed", count=count, older_than_hours=24)
        except (MissingError, UnreachableError) as error:
            _log.warning("uploads that nobody finished could not be looked for", error=str(error))
        await asyncio.sleep(SWEEP_SECONDS)


async def remove_leftovers(uploads: FileUploads, *, before: datetime) -> int:
    """Remove unfinished and uncopied uploads that began before an aware time; returns how many. Raises as `call`."""
    removed = await uploads.call("list unfinished uploads", _aborting(uploads.bucket, before))
    removed += await uploads.call("list uploads", _deleting(uploads.bucket, before))
    figures.LEFTOVERS.inc(removed)
    return removed


def _aborting(bucket: str, before: datetime) -> Callable[[S3Client], int]:
    def abort(client: S3Client) -> int:
        removed = 0
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=STAGING):
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < before:
                    client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                    removed += 1
        return removed

    return abort


def _deleting(bucket: str, before: datetime) -> Callable[[S3Client], int]:
    def delete(client: S3Client) -> int:
        removed = 0
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=STAGING):
            for found in page.get("Contents", []):
                if found["LastModified"] < before:
                    client.delete_object(Bucket=bucket, Key=found["Key"])
                    removed += 1
        return removed

    return delete
