"""A flow with the source, real recovery and a sink that keeps what it is given; processes run it as

    python -m bytewax.run resharding_flow:flow

The sink is exactly-once in the way of the product's own: an epoch's rows and the marker of their positions are one
file, and rows that a marker covers are dropped.
"""

from __future__ import annotations

import os
from pathlib import Path

import bytewax.operators as op
import orjson
from bytewax.dataflow import Dataflow
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from core.markers import Marker
from core.records import Event, RawRecord
from core.recovery.attach import attach_to_bytewax_run
from core.settings import load_settings
from operators import parse
from sources import kinesis

FOLDER = "RESHARDING_FOLDER"
FLOW = "resharding"


class Journal(StatefulSinkPartition[RawRecord, None]):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[RawRecord] = []
        commits = [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("commit-*.json"))]
        self._marker = Marker.from_json(commits[-1]["marker"]) if commits else Marker()

    def write_batch(self, values: list[RawRecord]) -> None:
        # Within an epoch, records of different shards come in any order: the marker moves at its end.
        self._rows += [record for record in values if not self._marker.covers(record.position)]

    def snapshot(self) -> None:
        if self._rows:
            positions = [record.position for record in self._rows]
            self._marker = self._marker.advanced(positions, commit_number=self._marker.commit_number + 1)
            rows = [[record.partition_key, record.data.decode(), record.position.shard_id] for record in self._rows]
            path = self._folder / f"commit-{self._marker.commit_number:06d}.json"
            part = path.with_suffix(".part")
            part.write_bytes(orjson.dumps({"marker": self._marker.to_json(), "rows": rows}))
            part.rename(path)
            self._rows = []


class JournalSink(FixedPartitionedSink[RawRecord, None]):
    def list_parts(self) -> list[str]:
        return ["journal"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> Journal:
        return Journal(Path(os.environ[FOLDER]))


def flow() -> Dataflow:
    settings = load_settings()
    attach_to_bytewax_run(settings, flow=FLOW)
    graph = Dataflow(FLOW)
    stream = kinesis.input("kinesis", graph, settings=settings)
    parsed = parse.events("parse", stream.records, bucket=settings.bucket)
    records = op.map("record", parsed.events, record_of)
    op.output("journal", op.key_on("one", records, lambda _: "journal"), JournalSink())
    return graph


def record_of(event: Event) -> RawRecord:
    return event.record


def rows_of(folder: Path) -> list[tuple[str, str, str]]:
    """Return what was committed, in order: partition key, data, shard."""
    return [
        tuple(row)  # type: ignore[misc]
        for path in sorted(folder.glob("commit-*.json"))
        for row in orjson.loads(path.read_bytes())["rows"]
    ]
