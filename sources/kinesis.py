"""The Kinesis source: reads a stream's shards through a fixed number of Bytewax partitions.

Use it in the manner of Bytewax's own connectors:

    from sources import kinesis

    inp = kinesis.input("inp", flow, settings=settings)
    inp.records, inp.watermarks
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

import bytewax.operators as op
import structlog
from bytewax.dataflow import Dataflow, Stream, operator
from bytewax.inputs import FixedPartitionedSource

from core import aws
from core.errors import UnreachableError
from core.halt import Halt
from core.records import RawRecord, Watermark
from core.settings import Settings
from sources.halting import HaltingPartition
from sources.kinesis_calls import CallThreads
from sources.kinesis_client import ATTEMPTS_AT_ONCE, StreamReader, create_stream, read_client
from sources.kinesis_figures import ShardFigures, publish
from sources.kinesis_notices import Board, Notice, NoticeSink
from sources.kinesis_partition import Item, KinesisPartition
from sources.kinesis_range import RangeReader, StreamRange
from sources.kinesis_shards import partition_names
from sources.kinesis_state import PartitionState, refuse_other_start

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = ["KinesisOut", "KinesisSource", "create_stream", "input"]

_log = structlog.get_logger(module=__name__)


@dataclass(frozen=True)
class KinesisOut:
    """Result streams of the source."""

    records: Stream[RawRecord]
    """The stream's records, in order within a shard."""

    watermarks: Stream[Watermark]
    """Each partition's promises; they hold for whole epochs, however items overtake each other within one."""


class KinesisSource(FixedPartitionedSource[Item, Mapping[str, Any]]):
    """Describes the stream to read; see `input` for what is guaranteed.

    `client` makes the client that the partitions of a process share, when the first of them is built; by default from
    the settings and `AWS_*`. What partitions tell each other comes in on `board`. The shards' figures are published
    under the name of `flow`, if it is given. `ahead` is shown the records that come next with each batch.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bounds: StreamRange | None = None,
        halt: Halt | None = None,
        client: Callable[[], KinesisClient] | None = None,
        board: Board | None = None,
        flow: str | None = None,
        ahead: Callable[[Sequence[RawRecord]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._bounds = bounds
        self._halt = halt or Halt()
        self._make_client = client or (lambda: read_client(settings))
        self._client: KinesisClient | None = None
        self._client_lock = threading.Lock()
        self._board = board or Board()
        self._flow = flow
        self._ahead = ahead

    def list_parts(self) -> list[str]:
        """Name the partitions: `settings.source_partitions` of them, whatever shards the stream has."""
        return partition_names(self._settings.source_partitions)

    def build_part(
        self,
        step_id: str,  # noqa: ARG002 - part of Bytewax's interface
        for_part: str,
        resume_state: Mapping[str, Any] | None,
    ) -> HaltingPartition[Item, Mapping[str, Any]]:
        """Build or resume a partition; no call to Kinesis is made yet.

        Raises SnapshotError when the resume state is of another stream or number of partitions.
        """
        settings = self._settings
        names = self.list_parts()
        number = names.index(for_part)
        bounds = self._bounds
        position = bounds.start if bounds else settings.start_position
        client = self._shared_client()
        if resume_state is None:
            start = datetime.now(UTC) if position == "latest" else position
            state = PartitionState(settings.stream, len(names), start)
        else:
            state = PartitionState.from_snapshot(resume_state, stream=settings.stream, partitions=len(names))
            if bounds is None:
                refuse_other_start(state, position, shown=settings.start)
        self._board.begin(number)
        partition = KinesisPartition(
            RangeReader(client, settings.stream, bounds) if bounds else StreamReader(client, settings.stream),
            state,
            partition=number,
            pin=position == "latest" and resume_state is None,
            batch_records=settings.batch_records,
            until_caught_up=bounds is not None or settings.until_caught_up,
            on_data_loss=settings.on_data_loss,
            patience=settings.retry_timeout,
            epoch=settings.epoch,
            calls=CallThreads(ATTEMPTS_AT_ONCE, name=f"kinesis-{for_part}"),
            board=self._board,
            publish=self._publisher(for_part),
            ahead=self._ahead,
        )
        return HaltingPartition(partition, self._halt)

    def _shared_client(self) -> KinesisClient:
        with self._client_lock:
            self._client = self._client or self._make_client()
            return self._client

    def _publisher(self, partition: str) -> Callable[[Sequence[ShardFigures]], None] | None:
        flow = self._flow
        if flow is None:
            return None
        store = aws.object_store(self._settings)

        def publish_figures(figures: Sequence[ShardFigures]) -> None:
            try:
                publish(store, flow=flow, partition=partition, figures=figures)
            except UnreachableError as error:
                # Only a screen lacks something; the sinks will tell when S3 stays away.
                _log.debug("figures not published", error=str(error))

        return publish_figures


@operator
def input(  # noqa: A001 - named as in Bytewax's connectors
    step_id: str,  # noqa: ARG001 - the decorator reads it
    flow: Dataflow,
    *,
    settings: Settings,
    bounds: StreamRange | None = None,
    halt: Halt | None = None,
    ahead: Callable[[Sequence[RawRecord]], None] | None = None,
) -> KinesisOut:
    """Read `settings.stream` as an input.

    The unit of parallelism is one of `settings.source_partitions` partitions; each reads the shards whose number
    is its own modulo that number, side by side, at most five reads a second and shard. Records that the Kinesis
    Producer Library aggregated are unpacked. Can support exactly-once processing: a restart goes on after the last
    record of the snapshot, also within an aggregate.

    Records of a shard are in order. So are those of a partition key across splits and merges: a child shard is read
    in a later epoch than the last record of its parents, whichever workers and processes have them.

    A watermark W of a partition promises that all its records that arrived up to W were emitted in earlier epochs.
    With `bounds` only that range is read, then the input ends.
    With `settings.until_caught_up` the input ends when every shard was read to its end once. When `halt` is
    requested it takes no more records, and raises the halt's error once the epoch has ended. With each batch `ahead`
    is shown the records that are likely to be the next, so that what they need can be got in the meantime.

    Raises in the running flow: MissingError when the stream does not exist, was made anew, or no longer holds what
    the snapshot wants next (unless `settings.on_data_loss` is "warn"); UnreachableError when Kinesis refuses, or does
    not answer for `settings.retry_timeout`; SnapshotError when the snapshot does not fit the settings, PKM_START
    among them.
    """
    board = Board()
    source = KinesisSource(settings, bounds=bounds, halt=halt, board=board, flow=flow.flow_id, ahead=ahead)
    items = op.input("kinesis", flow, source)
    split = op.branch("split", items, _is_record)
    others = op.branch("split_notices", split.falses, _is_watermark)  # type: ignore[arg-type]
    names = source.list_parts()

    def to_receiver(notice: Notice) -> tuple[str, Notice]:
        return names[notice.receiver], notice

    notices = op.map("to_receiver", others.falses, to_receiver)  # type: ignore[arg-type]
    op.output("notices", notices, NoticeSink(board, len(names)))
    return KinesisOut(records=split.trues, watermarks=others.trues)


def _is_record(item: Item) -> TypeGuard[RawRecord]:
    return isinstance(item, RawRecord)


def _is_watermark(item: Watermark | Notice) -> TypeGuard[Watermark]:
    return isinstance(item, Watermark)
