"""Calls to Kinesis in our own terms: values for answers, our errors for faults, no retries.

Retrying is left to the caller, because a source decides itself when it calls: between two calls it has other things
to do.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from botocore.session import get_session
from botocore.utils import parse_timestamp

from core import aws
from core.errors import MissingError, PkmError, UnreachableError, reason
from core.records import Position, RawRecord
from core.settings import Settings
from sources.kinesis_shards import Shard
from sources.kinesis_state import Incarnation, ShardState

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import GetShardIteratorInputTypeDef

__all__ = [
    "ATTEMPTS_AT_ONCE",
    "DataLossError",
    "Listing",
    "Place",
    "Read",
    "ShardGoneError",
    "StreamReader",
    "ThrottledError",
    "TransientError",
    "UnansweredError",
    "create_stream",
    "read_client",
]

CONNECT_SECONDS = 5
READ_SECONDS = 15
ACTIVE_SECONDS = 120.0
POLL_SECONDS = 1.0
ATTEMPTS_AT_ONCE = 8
"""Calls that one client may make side by side."""
THROTTLING_CODES = frozenset(
    {
        "KMSThrottlingException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
    }
)
TRANSIENT_CODES = frozenset(
    {
        "ExpiredNextTokenException",
        "InternalFailure",
        "InternalServerError",
        "RequestTimeout",
        "RequestTimeoutException",
        # A stream that is being created or resharded.
        "ResourceInUseException",
        "ServiceUnavailable",
    }
)
# The server's Date header has whole seconds and is written after the data was looked up.
DATE_MARGIN = timedelta(seconds=1)


class TransientError(UnreachableError):
    """A fault that a later call may not meet: throttling, a server error, a broken connection."""


class UnansweredError(TransientError):
    """Nothing answered: a broken connection, or a wrong endpoint."""


class ThrottledError(TransientError):
    """Kinesis was asked too often."""


class DataLossError(MissingError):
    """The stream no longer holds what a shard's state wants to read next."""


class ShardGoneError(DataLossError):
    """The retention period removed a whole shard before it was read to its end."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The stream and its shards by id: all that existed at `time`. `server_time` is the server's, if it told one."""

    shards: Mapping[str, Shard]
    incarnation: Incarnation
    retention: timedelta
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
    behind: timedelta = timedelta()
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an iterator begins: one kind of the API's, with the sequence number or time that belongs to it."""

    kind: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"]
    sequence_number: int | None = None
    time: datetime | None = None

    @classmethod
    def of(cls, state: ShardState) -> Place:
        """Return where reading goes on: at the last emitted record, so that it is seen whether it is still there."""
        if state.sequence_number is not None:
            return cls("AT_SEQUENCE_NUMBER", state.sequence_number)
        if isinstance(state.start, Position):
            return cls("AT_SEQUENCE_NUMBER", state.start.sequence_number)
        if isinstance(state.start, datetime):
            return cls("AT_TIMESTAMP", time=state.start)
        return cls("TRIM_HORIZON")


class StreamReader:
    """Reads one stream, call by call; safe to share between threads.

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
        """Describe the stream and list all its shards that still hold records or get new ones."""
        asked_at = self._now()
        with self._translated("DescribeStreamSummary"):
            described = self._client.describe_stream_summary(StreamName=self._stream)
            summary = described["StreamDescriptionSummary"]
            incarnation = Incarnation(summary["StreamARN"], summary["StreamCreationTimestamp"].astimezone(UTC))
            retention = timedelta(hours=summary["RetentionPeriodHours"])
        shards: dict[str, Shard] = {}
        token: str | None = None
        while True:
            with self._translated("ListShards"):
                answer = (
                    self._client.list_shards(NextToken=token)
                    if token
                    else self._client.list_shards(StreamName=self._stream)
                )
                shards.update((shard["ShardId"], _shard(shard)) for shard in answer["Shards"])
            token = answer.get("NextToken")
            if not token:
                # The time before the first page: a shard created later may be missing.
                server_time = _server_time(described)
                time = (server_time or asked_at) - DATE_MARGIN
                return Listing(shards, incarnation, retention, time, server_time)

    def shard_iterator(self, shard_id: str, place: Place) -> str:
        """Return an iterator.

        Raises DataLossError when the stream refuses the place, ShardGoneError when it has no such shard.
        """
        request: GetShardIteratorInputTypeDef = {
            "StreamName": self._stream,
            "ShardId": shard_id,
            "ShardIteratorType": place.kind,
        }
        if place.sequence_number is not None:
            request["StartingSequenceNumber"] = str(place.sequence_number)
        if place.time is not None:
            request["Timestamp"] = place.time
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
                records = tuple(
                    RawRecord(
                        record["Data"],
                        record["PartitionKey"],
                        record["ApproximateArrivalTimestamp"].astimezone(UTC),
                        Position(shard_id, int(record["SequenceNumber"])),
                    )
                    for record in answer["Records"]
                )
        except DataLossError:
            return None
        behind = answer.get("MillisBehindLatest")
        return Read(
            records,
            next_iterator=answer.get("NextShardIterator") or None,
            caught_up=not records and behind == 0,
            time=(_server_time(answer) or asked_at) - DATE_MARGIN,
            behind=timedelta(milliseconds=behind or 0),
            data_bytes=sum(len(record.data) for record in records),
        )

    @contextlib.contextmanager
    def _translated(self, call: str, shard_id: str | None = None) -> Iterator[None]:
        where = _place(self._stream, shard_id, self._client.meta.endpoint_url)
        try:
            yield
        except ClientError as error:
            raise _translate(error, call, where, self._stream) from error
        except (BotoConnectionError, HTTPClientError, ResponseParserError) as error:
            raise UnansweredError(f"Kinesis did not answer {call} on {where}: {reason(error)}") from error
        except BotoCoreError as error:
            raise UnreachableError(f"Kinesis can't be called ({call} on {where}): {reason(error)}") from error
        except KeyError as error:
            # botocore gives an empty answer when the body was cut short: without this, it would look like the end of
            # a shard.
            raise TransientError(
                f"Kinesis' answer to {call} on {where} is incomplete ({error} is missing)"
            ) from error


def read_client(settings: Settings) -> KinesisClient:
    """Return a client that does not retry by itself, so that the source knows of each call, and paces it."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=ATTEMPTS_AT_ONCE,
    )
    session = get_session()
    # botocore's own parser of times goes through the local time zone, and takes half of the time of a read.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    client: KinesisClient = boto3.Session(botocore_session=session).client(
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
        raise UnreachableError(f"Kinesis can't be called (CreateStream on {where}): {reason(error)}") from error


def _translate(error: ClientError, call: str, where: str, stream: str) -> PkmError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = error.response.get("Error", {}).get("Message", "")
    if code in THROTTLING_CODES:
        return ThrottledError(f"Kinesis throttled {call} on {where}: {code} {message}".rstrip())
    if code in TRANSIENT_CODES or status >= 500:
        return TransientError(f"Kinesis did not answer {call} on {where}: {code} {message}".rstrip())
    if code == "ResourceNotFoundException":
        return MissingError(f'stream "{stream}" does not exist: run `pkm init` or set PKM_STREAM')
    if code in ("ExpiredIteratorException", "InvalidArgumentException"):
        return DataLossError(f"{where} does not hold the position to read on from: {message}")
    return UnreachableError(f"Kinesis refused {call} on {where}: {code} {message}".rstrip())


def _shard(described: Mapping[str, Any]) -> Shard:
    parents = (described.get("ParentShardId"), described.get("AdjacentParentShardId"))
    hash_keys = described["HashKeyRange"]
    return Shard(
        described["ShardId"],
        parents=tuple(parent for parent in parents if parent),
        closed="EndingSequenceNumber" in described["SequenceNumberRange"],
        hash_range=(int(hash_keys["StartingHashKey"]), int(hash_keys["EndingHashKey"])),
    )


def _time(value: Any) -> datetime:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else parse_timestamp(value)


def _place(stream: str, shard_id: str | None, endpoint: str) -> str:
    return f'stream "{stream}"' + (f", shard {shard_id}" if shard_id else "") + f" at {endpoint}"


def _server_time(answer: Mapping[str, Any]) -> datetime | None:
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not text:
        return None
    try:
        return email.utils.parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None
