"""The Kinesis source: reads a stream's shards through a fixed number of Bytewax partitions.

Use it in the manner of Bytewax's own connectors:

    from sources import kinesis

    inp = kinesis.input("inp", flow, settings=settings)
    inp.records, inp.watermarks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream, operator
from bytewax.inputs import FixedPartitionedSource

from core.halt import Halt
from core.records import RawRecord, Watermark
from core.settings import Settings
from sources.halting import HaltingPartition
from sources.kinesis_client import StreamReader, create_stream, read_client
from sources.kinesis_partition import KinesisPartition
from sources.kinesis_range import RangeReader, StreamRange
from sources.kinesis_shards import PartitionState, partition_names, refuse_other_start

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

__all__ = ["KinesisOut", "KinesisSource", "create_stream", "input"]


@dataclass(frozen=True)
class KinesisOut:
    """Result streams of the source."""

    records: Stream[RawRecord]
    """The stream's records, in order within a shard."""

    watermarks: Stream[Watermark]
    """Each partition's promises; they hold for whole epochs, however items overtake each other within one."""


class KinesisSource(FixedPartitionedSource[RawRecord | Watermark, Mapping[str, Any]]):
    """Describes the stream to read; see `input` for what is guaranteed.

    `client` makes the client of a partition when its worker starts; by default from the settings and `AWS_*`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bounds: StreamRange | None = None,
        halt: Halt | None = None,
        client: Callable[[], KinesisClient] | None = None,
    ) -> None:
        self._settings = settings
        self._bounds = bounds
        self._halt = halt or Halt()
        self._client = client

    def list_parts(self) -> list[str]:
        """Name the partitions: `settings.source_partitions` of them, whatever shards the stream has."""
        return partition_names(self._settings.source_partitions)

    def build_part(
        self,
        step_id: str,  # noqa: ARG002 - part of Bytewax's interface
        for_part: str,
        resume_state: Mapping[str, Any] | None,
    ) -> HaltingPartition[RawRecord | Watermark, Mapping[str, Any]]:
        """Build or resume a partition; no call to Kinesis is made yet.

        Raises SnapshotError when the resume state is of another stream or number of partitions.
        """
        settings = self._settings
        names = self.list_parts()
        bounds = self._bounds
        position = bounds.start if bounds else settings.start_position
        client = self._client() if self._client else read_client(settings)
        if resume_state is None:
            start = datetime.now(UTC) if position == "latest" else position
            state = PartitionState(settings.stream, len(names), start)
        else:
            state = PartitionState.from_snapshot(resume_state, stream=settings.stream, partitions=len(names))
            if bounds is None:
                refuse_other_start(state, position, shown=settings.start)
        partition = KinesisPartition(
            RangeReader(client, settings.stream, bounds) if bounds else StreamReader(client, settings.stream),
            state,
            partition=names.index(for_part),
            pin=position == "latest" and resume_state is None,
            batch_records=settings.batch_records,
            until_caught_up=bounds is not None or settings.until_caught_up,
            on_data_loss=settings.on_data_loss,
        )
        return HaltingPartition(partition, self._halt)


@operator
def input(  # noqa: A001 - named as in Bytewax's connectors
    step_id: str,  # noqa: ARG001 - the decorator reads it
    flow: Dataflow,
    *,
    settings: Settings,
    bounds: StreamRange | None = None,
    halt: Halt | None = None,
) -> KinesisOut:
    """Read `settings.stream` as an input.

    The unit of parallelism is one of `settings.source_partitions` partitions; each reads the shards whose number
    is its own modulo that number, at most five reads a second and
    shard. Records are in order within a shard, also across a split or merge inside a partition. Can support
    exactly-once processing: a restart goes on after the last record of the snapshot.

    A watermark W of a partition promises that all its records that arrived up to W were emitted in earlier epochs.
    With `bounds` only that range is read, then the input ends.
    With `settings.until_caught_up` the input ends when every shard was read to its end once. When `halt` is
    requested it takes no more records, and raises the halt's error once the epoch has ended.

    Raises in the running flow: MissingError when the stream does not exist or no longer holds what the snapshot
    wants next, UnreachableError when Kinesis refuses, or does not answer for several attempts, SnapshotError when
    the snapshot does not fit the settings (PKM_START among them).
    """
    items = op.input("kinesis", flow, KinesisSource(settings, bounds=bounds, halt=halt))
    split = op.branch("split", items, _is_record)
    return KinesisOut(records=split.trues, watermarks=split.falses)  # type: ignore[arg-type]


def _is_record(item: RawRecord | Watermark) -> TypeGuard[RawRecord]:
    return isinstance(item, RawRecord)
