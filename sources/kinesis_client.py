"""Calls to Kinesis in our own terms: values for answers, our errors for faults, no retries.

Retrying is left to the caller, because a source must wait between calls, never within one: the worker that waits
can't do anything else.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from core import aws
from core.errors import MissingError, PkmError, UnreachableError
from core.records import Position, RawRecord
from core.settings import Settings
from sources.kinesis_shards import Shard, ShardState

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import GetShardIteratorInputTypeDef

__all__ = [
    "DataLossError",
    "Listing",
    "Read",
    "ShardGoneError",
    "StreamReader",
    "TransientError",
    "create_stream",
    "read_client",
]

CONNECT_SECONDS = 5
READ_SECONDS = 15
ACTIVE_SECONDS = 120.0
POLL_SECONDS = 1.0
TRANSIENT_CODES = frozenset(
    {
        "ExpiredNextTokenException",
        "InternalFailure",
        "InternalServerError",
        "KMSThrottlingException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestTimeout",
        "RequestTimeoutException",
        # A stream that is being created or resharded.
        "ResourceInUseException",
        "ServiceUnavailable",
        "ThrottlingException",
    }
)
# The server's Date header has whole seconds and is written after the data was looked up.
DATE_MARGIN = timedelta(seconds=1)


class TransientError(UnreachableError):
    """A fault that a later call may not meet: throttling, a server error, a broken connection."""


class DataLossError(MissingError):
    """The stream no longer holds what a shard's state wants to read next."""


class ShardGoneError(DataLossError):
    """The retention period removed a whole shard before it was read to its end."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The stream's shards by id: all that existed at `time`. `server_time` is the first answer's, if it told one."""

    shards: Mapping[str, Shard]
    time: datetime
    server_time: datetime | None


@dataclass(frozen=True, slots=True)
class Read:
    """One answer of GetRecords.

    `caught_up` when the shard held nothing more at `time`; an answer without records alone does not say so, Kinesis
    gives empty ones on its way through a sparse shard. `next_iterator` is None at the end of a closed shard.
    """

    records: tuple[RawRecord, ...]
    next_iterator: str | None
    caught_up: bool
    time: datetime


class StreamReader:
    """Reads one stream, call by call.

    Every method raises TransientError for a fault that may pass, MissingError when the stream does not exist, and
    UnreachableError when Kinesis refuses for good (no permission, no credentials).
    """

    def __init__(
        self, client: KinesisClient, stream: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._client = client
        self._stream = stream
        self._now = now

    def list_shards(self) -> Listing:
        """List all shards of the stream that still hold records or get new ones."""
        shards: dict[str, Shard] = {}
        asked_at = self._now()
        first: datetime | None = None
        token: str | None = None
        while True:
            with self._translated("ListShards"):
                answer = (
                    self._client.list_shards(NextToken=token)
                    if token
                    else self._client.list_shards(StreamName=self._stream)
                )
            # The first page's time: a shard created later may be missing.
            first = first or _server_time(answer)
            for shard in answer["Shards"]:
                parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
                shards[shard["ShardId"]] = Shard(
                    shard["ShardId"],
                    parents=tuple(parent for parent in parents if parent),
                    closed="EndingSequenceNumber" in shard["SequenceNumberRange"],
                )
            token = answer.get("NextToken")
            if not token:
                return Listing(shards, (first or asked_at) - DATE_MARGIN, first)

    def shard_iterator(self, shard_id: str, state: ShardState) -> str:
        """Return an iterator after the last emitted record of a shard, or at its start.

        Raises DataLossError when that place is not in the stream any more.
        """
        request: GetShardIteratorInputTypeDef = {
            "StreamName": self._stream,
            "ShardId": shard_id,
            "ShardIteratorType": "TRIM_HORIZON",
        }
        if state.sequence_number is not None:
            request["ShardIteratorType"] = "AFTER_SEQUENCE_NUMBER"
            request["StartingSequenceNumber"] = str(state.sequence_number)
        elif isinstance(state.start, Position):
            request["ShardIteratorType"] = "AT_SEQUENCE_NUMBER"
            request["StartingSequenceNumber"] = str(state.start.sequence_number)
        elif isinstance(state.start, datetime):
            request["ShardIteratorType"] = "AT_TIMESTAMP"
            request["Timestamp"] = state.start
        try:
            with self._translated("GetShardIterator", shard_id):
                return self._client.get_shard_iterator(**request)["ShardIterator"]
        except DataLossError:
            raise
        except MissingError:
            # The same error stands for a missing stream and for a shard that the retention period removed.
            if shard_id in self.list_shards().shards:
                raise TransientError(f'stream "{self._stream}" is changing') from None
            raise ShardGoneError(
                f'stream "{self._stream}" has no shard {shard_id} any more, although it was not read to its end'
            ) from None

    def read(self, shard_id: str, iterator: str, *, limit: int) -> Read | None:
        """Read at most `limit` records; None when the iterator has expired (5 minutes) or is refused."""
        asked_at = self._now()
        try:
            with self._translated("GetRecords", shard_id):
                answer = self._client.get_records(ShardIterator=iterator, Limit=limit)
        except DataLossError:
            return None
        records = tuple(
            RawRecord(
                data=record["Data"],
                partition_key=record["PartitionKey"],
                arrival_time=record["ApproximateArrivalTimestamp"].astimezone(UTC),
                position=Position(shard_id, int(record["SequenceNumber"])),
            )
            for record in answer["Records"]
        )
        return Read(
            records,
            next_iterator=answer.get("NextShardIterator") or None,
            caught_up=not records and answer.get("MillisBehindLatest") == 0,
            time=(_server_time(answer) or asked_at) - DATE_MARGIN,
        )

    @contextlib.contextmanager
    def _translated(self, call: str, shard_id: str | None = None) -> Iterator[None]:
        where = _place(self._stream, shard_id, self._client.meta.endpoint_url)
        try:
            yield
        except ClientError as error:
            raise _translate(error, call, where, self._stream) from error
        except (BotoConnectionError, HTTPClientError, ResponseParserError) as error:
            raise TransientError(f"Kinesis did not answer {call} on {where}: {_one_line(error)}") from error
        except BotoCoreError as error:
            raise UnreachableError(f"Kinesis can't be called ({call} on {where}): {_one_line(error)}") from error


def read_client(settings: Settings) -> KinesisClient:
    """Return a client that does not retry by itself: botocore would sleep and hold up its worker meanwhile."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    client: KinesisClient = boto3.client(
        "kinesis", region_name=aws.region(settings), endpoint_url=aws.endpoint("kinesis"), config=config
    )
    return client


def create_stream(settings: Settings, *, client: KinesisClient | None = None) -> bool:
    """Create the stream with `settings.shards` shards unless it exists, and wait until it can be used.

    Returns whether it was created; an existing stream keeps its shards. Raises UnreachableError when Kinesis does
    not answer, refuses, or the stream is not active within two minutes.
    """
    client = client or aws.kinesis_client(settings)
    where = _place(settings.stream, None, client.meta.endpoint_url)
    created = True
    try:
        try:
            client.create_stream(StreamName=settings.stream, ShardCount=settings.shards)
        except client.exceptions.ResourceInUseException:
            created = False
        deadline = time.monotonic() + ACTIVE_SECONDS
        while True:
            summary = client.describe_stream_summary(StreamName=settings.stream)["StreamDescriptionSummary"]
            # An existing stream that is being resharded can be written and read.
            if summary["StreamStatus"] in ("ACTIVE", "UPDATING"):
                return created
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"{where} is still {summary['StreamStatus']} after {ACTIVE_SECONDS:.0f} s: try again later"
                )
            time.sleep(POLL_SECONDS)
    except ClientError as error:
        raise _translate(error, "CreateStream", where, settings.stream) from error
    except BotoCoreError as error:
        raise UnreachableError(f"Kinesis can't be called (CreateStream on {where}): {_one_line(error)}") from error


def _translate(error: ClientError, call: str, where: str, stream: str) -> PkmError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = error.response.get("Error", {}).get("Message", "")
    if code in TRANSIENT_CODES or status >= 500:
        return TransientError(f"Kinesis did not answer {call} on {where}: {code} {message}".rstrip())
    if code == "ResourceNotFoundException":
        return MissingError(f'stream "{stream}" does not exist: run `pkm init` or set PKM_STREAM')
    if code in ("ExpiredIteratorException", "InvalidArgumentException"):
        return DataLossError(f"{where} does not hold the position to read on from: {message}")
    return UnreachableError(f"Kinesis refused {call} on {where}: {code} {message}".rstrip())


def _place(stream: str, shard_id: str | None, endpoint: str) -> str:
    return f'stream "{stream}"' + (f", shard {shard_id}" if shard_id else "") + f" at {endpoint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _server_time(answer: Mapping[str, Any]) -> datetime | None:
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not text:
        return None
    try:
        return email.utils.parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None
