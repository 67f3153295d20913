"""The main dataflow over a bounded part of the stream, on purpose: what is there is replaced, nothing is added.

It is an execution of the same flow (the same name, the same steps), so that it takes over the flow's stores and can't
write beside it. bronze.notes stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from core.halt import Halt
from core.records import Failure
from core.settings import Settings
from flows.knowledge import FLOW, process, watch
from operators import fetch, known, parse
from sinks import iceberg, iceberg_tables, kept_results, lance, slatedb
from sources import kinesis
from sources.kinesis_range import StreamRange

__all__ = ["build"]


def build(settings: Settings, *, bounds: StreamRange, tables: known.Known) -> Dataflow:
    """Build the dataflow; `settings` has the new processing version. Touches neither network nor models."""
    graph, halt = Dataflow(FLOW), Halt()

    def explained(failure: Failure) -> Failure:
        message = f"{bounds.name} with version {settings.processing_version}, the note stays: {failure.message}"
        return replace(failure, message=message)

    objects = fetch.Objects(settings)
    stream = kinesis.input("kinesis", graph, settings=settings, bounds=bounds, halt=halt, ahead=objects.ahead)
    parsed = parse.events("parse", stream.records, bucket=settings.bucket)
    events = known.events("known", parsed.events, known=tables)
    done = process(
        events, stream.watermarks, settings=settings, objects=objects, open_results=kept_results.StoredResults
    )
    failures = op.map("explain", done.failures, explained)
    aggregates = known.windows("complete", done.aggregates, known=tables)

    iceberg.output("bronze_failures", failures, table=iceberg_tables.BRONZE_FAILURES, settings=settings)
    iceberg.output("silver_notes", done.notes, table=iceberg_tables.SILVER_NOTES, settings=settings)
    iceberg.output("silver_metrics", aggregates, table=iceberg_tables.SILVER_METRICS, settings=settings)
    slatedb.output("metadata", done.notes, settings=settings)
    lance.output("vectors", done.notes, settings=settings)
    watch("failure_rate", done, stream.watermarks, settings=settings, halt=halt)
    return graph
