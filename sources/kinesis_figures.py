"""Figures of each shard: counted while it is read, served on /metrics, and kept on S3 for `pkm status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import obstore
import orjson
from obstore.exceptions import BaseError
from obstore.store import ObjectStore
from prometheus_client import Counter, Gauge

from core.errors import UnreachableError, reason
from core.layout import FIGURES
from core.records import Position

__all__ = ["MISPLACED", "FiguresBoard", "ShardFigures", "publish", "published"]

SHARDS = ["shard"]
BEHIND = Gauge("pkm_shard_millis_behind_latest", "How far the last read was behind the end of the shard", SHARDS)
RECORDS_READ = Counter("pkm_shard_records", "Records read from the shard", SHARDS)
BYTES_READ = Counter("pkm_shard_bytes", "Bytes of data read from the shard", SHARDS)
READS = Counter("pkm_shard_reads", "Reads that Kinesis answered", SHARDS)
EMPTY_READS = Counter("pkm_shard_empty_reads", "Reads that brought nothing", SHARDS)
THROTTLES = Counter("pkm_shard_throttles", "Calls that Kinesis throttled", SHARDS)
# A sequence number has 186 bits and a gauge 53; `pkm status` shows it whole.
POSITION = Gauge("pkm_shard_position_timestamp_seconds", "Arrival of the last record that was handed on", SHARDS)
MISPLACED = Counter(
    "pkm_misplaced_aggregates", "Aggregated records dropped because a user record belongs to another shard", SHARDS
)

_ALL = (BEHIND, RECORDS_READ, BYTES_READ, READS, EMPTY_READS, THROTTLES, POSITION)


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """How the reading of one shard went in this run of the flow; `sequence_number` is the last one handed on."""

    shard_id: str
    millis_behind_latest: int = 0
    records: int = 0
    data_bytes: int = 0
    reads: int = 0
    empty_reads: int = 0
    throttles: int = 0
    sequence_number: str | None = None
    subsequence_number: int = 0
    arrived_at: datetime | None = None


class FiguresBoard:
    """The figures of one partition's shards."""

    def __init__(self) -> None:
        self._figures: dict[str, ShardFigures] = {}

    def read(self, shard_id: str, *, records: int, data_bytes: int, millis_behind: int) -> None:
        """Count a read that was answered."""
        figures = self._of(shard_id)
        self._figures[shard_id] = replace(
            figures,
            millis_behind_latest=millis_behind,
            records=figures.records + records,
            data_bytes=figures.data_bytes + data_bytes,
            reads=figures.reads + 1,
            empty_reads=figures.empty_reads + (not records),
        )
        BEHIND.labels(shard_id).set(millis_behind)
        READS.labels(shard_id).inc()
        if records:
            RECORDS_READ.labels(shard_id).inc(records)
            BYTES_READ.labels(shard_id).inc(data_bytes)
        else:
            EMPTY_READS.labels(shard_id).inc()

    def throttled(self, shard_id: str) -> None:
        """Count a call that was throttled."""
        figures = self._of(shard_id)
        self._figures[shard_id] = replace(figures, throttles=figures.throttles + 1)
        THROTTLES.labels(shard_id).inc()

    def handed_on(self, shard_id: str, position: Position, arrived_at: datetime) -> None:
        """Note the last record that was handed on."""
        self._figures[shard_id] = replace(
            self._of(shard_id),
            sequence_number=str(position.sequence_number),
            subsequence_number=position.subsequence_number,
            arrived_at=arrived_at,
        )
        POSITION.labels(shard_id).set(arrived_at.timestamp())

    def forget(self, shard_id: str) -> None:
        """Take a shard out that is read no more, so that nobody is told of a lag that can't change."""
        self._figures.pop(shard_id, None)
        for metric in _ALL:
            metric.remove(shard_id)

    def all(self) -> Mapping[str, ShardFigures]:
        """Return the figures by shard as they are now."""
        return dict(self._figures)

    def _of(self, shard_id: str) -> ShardFigures:
        return self._figures.get(shard_id) or ShardFigures(shard_id)


def publish(store: ObjectStore, *, flow: str, partition: str, figures: Iterable[ShardFigures]) -> None:
    """Put a partition's figures where `published` finds them.

    Raises UnreachableError when the object store refuses or does not answer.
    """
    document = {"written_at": datetime.now(UTC), "shards": [asdict(one) for one in figures]}
    try:
        obstore.put(store, f"{FIGURES}{flow}/{partition}.json", orjson.dumps(document))
    except (BaseError, OSError) as error:
        raise UnreachableError(f"the source's figures can't be written: {reason(error)}") from error


def published(store: ObjectStore, *, flow: str) -> dict[str, tuple[datetime, ShardFigures]]:
    """Return the newest published figures of each shard, with the time at which they were written.

    Raises UnreachableError when the object store refuses or does not answer.
    """
    newest: dict[str, tuple[datetime, ShardFigures]] = {}
    try:
        for page in obstore.list(store, f"{FIGURES}{flow}/"):
            for entry in page:
                document = orjson.loads(bytes(obstore.get(store, entry["path"]).bytes()))
                written_at = datetime.fromisoformat(document["written_at"])
                for fields in document["shards"]:
                    arrived_at = fields["arrived_at"] and datetime.fromisoformat(fields["arrived_at"])
                    figures = ShardFigures(**{**fields, "arrived_at": arrived_at})
                    if figures.shard_id not in newest or newest[figures.shard_id][0] < written_at:
                        newest[figures.shard_id] = (written_at, figures)
    except (BaseError, OSError) as error:
        raise UnreachableError(f"the source's figures can't be read: {reason(error)}") from error
    return newest
