"""A file on its way to S3 in parts: never whole in memory, never on a disk, and nothing left behind when it fails.

What fits one part is kept for whoever puts small objects. More goes to a name of its own in a multipart upload,
since the final name holds the content's digest; once that is known, S3 copies it there itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from core import aws
from core.errors import MissingError, UnreachableError, reason
from core.layout import SERVICE
from core.settings import Settings
from producers.content_types import SAMPLE_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

__all__ = ["PART_BYTES", "STAGING", "FileUpload", "FileUploads"]

PART_BYTES = 8 * 1024 * 1024
"""S3 takes parts from 5 MiB on, and 10,000 of them: up to 78 GiB."""
STAGING = f"{SERVICE}uploads/"
COPY_PART_BYTES = 512 * 1024 * 1024
ATTEMPTS = 4
"""Of a call, before its client is told to come back later."""
UNKNOWN_TYPE = "application/octet-stream"
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})

_T = TypeVar("_T")
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


class FileUploads:
    """The S3 client and threads that uploads share; belongs to one event loop."""

    def __init__(self, settings: Settings, *, at_once: int) -> None:
        self._settings = settings
        # A part of each upload is on its way, and a client keeps some more connections for copies.
        self._client: S3Client = aws.s3_client(settings, attempts=ATTEMPTS, connections=at_once + 8)
        self._threads = ThreadPoolExecutor(at_once + 2, thread_name_prefix="upload")
        self._undoing: set[asyncio.Task[None]] = set()

    def start(self, *, keep: bool = True) -> FileUpload:
        """Begin an upload; nothing is sent before a part is full, and nothing at all unless it is to be kept."""
        return FileUpload(self, keep=keep)

    async def close(self, *, seconds: float) -> None:
        """Wait so long for what failed uploads have to undo, then let the threads go; the sweep finds the rest."""
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, doing: str, work: Callable[[S3Client], _T]) -> _T:
        """Run a call of the client on a thread. Raises MissingError without a bucket, UnreachableError."""

        def run() -> _T:
            with self._reaching(doing):
                return work(self._client)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def undo(
        self, doing: str, work: Callable[[S3Client], Any], *, after: asyncio.Task[CompletedPartTypeDef] | None = None
    ) -> None:
        """Run a call beside everything else, also while its request is being cancelled; first `after` ends."""

        async def run() -> None:
            if after is not None:
                await asyncio.gather(after, return_exceptions=True)
            try:
                await self.call(doing, work)
            except (MissingError, UnreachableError) as error:
                # The sweep finds what is left.
                _log.warning("an upload could not be undone", doing=doing, error=str(error))

        task = asyncio.create_task(run())
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    @property
    def bucket(self) -> str:
        """Where it all goes."""
        return self._settings.bucket

    @contextmanager
    def _reaching(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"].get("Code") == "NoSuchBucket":
                raise MissingError(
                    f'bucket "{self.bucket}" does not exist: run `pkm init`, or set PKM_BUCKET'
                ) from error
            where = aws.endpoint("s3") or f"AWS in {aws.region(self._settings)}"
            raise UnreachableError(f'bucket "{self.bucket}" at {where} failed to {doing}: {reason(error)}') from error


class FileUpload:
    """One file: `write` its pieces, then put what is `whole` or `place` it under its name; `discard` it in the end.

    Holds at most two parts and a piece in memory: one that is filled while the other is sent.
    """

    def __init__(self, uploads: FileUploads, *, keep: bool) -> None:
        self._keep = keep
        self._uploads = uploads
        self._staging_key = f"{STAGING}{uuid.uuid4().hex}"
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._sample = bytearray()
        self._upload_id: str | None = None
        self._sending: asyncio.Task[CompletedPartTypeDef] | None = None
        self._parts: list[CompletedPartTypeDef] = []
        self._staged = False
        self.size_bytes = 0

    @property
    def sha256(self) -> bytes:
        """The digest of all that was written."""
        return self._digest.digest()

    async def write(self, piece: bytes) -> None:
        """Take a piece; waits while S3 is slower than the client. Raises as `place`."""
        self._digest.update(piece)
        self.size_bytes += len(piece)
        self._sample += piece[: max(SAMPLE_BYTES - len(self._sample), 0)]
        if not self._keep:
            return
        self._buffer += piece
        while len(self._buffer) > PART_BYTES:
            part = bytes(memoryview(self._buffer)[:PART_BYTES])
            del self._buffer[:PART_BYTES]
            await self._send(part)

    @property
    def sample(self) -> bytes:
        """The first bytes, to tell the content type from."""
        return bytes(self._sample)

    @property
    def whole(self) -> bytes | None:
        """All of it when it fits one part, so that nothing was sent; None when it has to be placed."""
        return bytes(self._buffer) if self._keep and self._upload_id is None else None

    async def place(self, key: str, *, attributes: Mapping[str, str]) -> None:
        """Have S3 keep the file under `key`, which names its content: what is there already is the same file.

        `attributes` are `Content-Type` and what else the object says of itself.

        Raises MissingError without a bucket, UnreachableError when S3 does not take it.
        """
        if not self._keep:
            raise UnreachableError("what this request was to be compared with is gone: send it again")
        await self._complete()
        if not await self._is_there(key):
            await self._copy(key, attributes)
        self._remove_staged()

    def discard(self) -> None:
        """Leave nothing of it on S3; after `place` does nothing."""
        self._buffer.clear()
        sending, self._sending = self._sending, None
        if self._staged:
            self._remove_staged()
        elif self._upload_id is not None:
            upload_id, self._upload_id = self._upload_id, None
            self._uploads.undo(
                "abort an upload",
                lambda client: client.abort_multipart_upload(
                    Bucket=self._uploads.bucket, Key=self._staging_key, UploadId=upload_id
                ),
                # S3 may keep a part that arrives after the upload is aborted.
                after=sending,
            )

    async def _send(self, part: bytes) -> None:
        if self._upload_id is None:
            self._upload_id = await self._uploads.call(
                "begin an upload",
                lambda client: client.create_multipart_upload(
                    Bucket=self._uploads.bucket, Key=self._staging_key, ContentType=UNKNOWN_TYPE
                )["UploadId"],
            )
        await self._sent()
        self._sending = asyncio.create_task(self._send_part(self._upload_id, len(self._parts) + 1, part))

    async def _send_part(self, upload_id: str, number: int, part: bytes) -> CompletedPartTypeDef:
        answer = await self._uploads.call(
            "take a part",
            lambda client: client.upload_part(
                Bucket=self._uploads.bucket,
                Key=self._staging_key,
                UploadId=upload_id,
                PartNumber=number,
                Body=part,
            ),
        )
        sent: CompletedPartTypeDef = {"ETag": answer["ETag"], "PartNumber": number}
        if checksum := answer.get("ChecksumCRC32"):
            sent["ChecksumCRC32"] = checksum
        return sent

    async def _sent(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            self._parts.append(await sending)

    async def _complete(self) -> None:
        await self._send(bytes(self._buffer))
        self._buffer.clear()
        await self._sent()
        await self._uploads.call(
            "complete an upload",
            lambda client: client.complete_multipart_upload(
                Bucket=self._uploads.bucket,
                Key=self._staging_key,
                UploadId=str(self._upload_id),
                MultipartUpload={"Parts": self._parts},
            ),
        )
        self._staged = True

    async def _is_there(self, key: str) -> bool:
        def look(client: S3Client) -> bool:
            try:
                client.head_object(Bucket=self._uploads.bucket, Key=key)
            except ClientError as error:
                if error.response["Error"].get("Code") in _ABSENT:
                    return False
                raise
            return True

        return await self._uploads.call("say whether it has a file", look)

    async def _copy(self, key: str, attributes: Mapping[str, str]) -> None:
        source: Any = {"Bucket": self._uploads.bucket, "Key": self._staging_key}
        others = dict(attributes)
        extra = {"ContentType": others.pop("Content-Type"), "Metadata": others, "MetadataDirective": "REPLACE"}
        # A copy in one request has a limit of 5 GiB, and takes longer than a request may.
        config = TransferConfig(
            multipart_threshold=COPY_PART_BYTES, multipart_chunksize=COPY_PART_BYTES, max_concurrency=4
        )
        await self._uploads.call(
            "copy an upload",
            lambda client: client.copy(source, self._uploads.bucket, key, ExtraArgs=extra, Config=config),
        )

    def _remove_staged(self) -> None:
        self._staged, self._upload_id = False, None
        self._uploads.undo(
            "remove what was copied",
            lambda client: client.delete_object(Bucket=self._uploads.bucket, Key=self._staging_key),
        )
