"""The main dataflow: stream to text, text to entities, concepts and vectors, all of it into the lakehouse.

    python -m bytewax.run flows.knowledge:flow

The step ids are the recovery identity: a snapshot belongs to them, so they never change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Stream

from core.halt import Halt
from core.records import Document, Event, Failure, Note, Watermark, WindowAggregate
from core.recovery.attach import attach_to_bytewax_run
from core.settings import Settings, load_settings
from core.telemetry import configure_logging
from models.registry import profile
from models.start import load_models
from operators import chunk, concepts, dedupe, embed, entities, extract, failure_rate, fetch, parse, windows
from operators.outcomes import History
from sinks import iceberg, iceberg_history, iceberg_tables, lance, slatedb
from sources import kinesis

__all__ = ["FLOW", "Processed", "build", "flow", "process", "watch"]

FLOW = "knowledge"


@dataclass(frozen=True)
class Processed:
    """What becomes of events on the way to the tables."""

    documents: Stream[Document]
    notes: Stream[Note]
    aggregates: Stream[WindowAggregate]
    failures: Stream[Failure]


def flow() -> Dataflow:
    """Build the dataflow from the environment.

    Under `bytewax.run` models are loaded before anything else, and with `-r` snapshots are kept on S3.
    """
    settings = load_settings()
    configure_logging(settings)
    graph = build(settings)
    attach_to_bytewax_run(settings, flow=FLOW, graph=graph, prepare=partial(load_models, settings))
    return graph


def build(settings: Settings) -> Dataflow:
    """Build the dataflow; touches neither network nor models."""
    graph, halt = Dataflow(FLOW), Halt()

    stream = kinesis.input("kinesis", graph, settings=settings, halt=halt)
    parsed = parse.events("parse", stream.records, bucket=settings.bucket)
    events = dedupe.unique("dedupe", parsed.events, retention=settings.dedupe_retention)
    done = process(
        events, stream.watermarks, parsed.failures, settings=settings, open_history=iceberg_history.StreamHistory
    )

    iceberg.output("bronze_notes", done.documents, table=iceberg_tables.BRONZE_NOTES, settings=settings)
    iceberg.output("bronze_failures", done.failures, table=iceberg_tables.BRONZE_FAILURES, settings=settings)
    iceberg.output("silver_notes", done.notes, table=iceberg_tables.SILVER_NOTES, settings=settings)
    iceberg.output("silver_metrics", done.aggregates, table=iceberg_tables.SILVER_METRICS, settings=settings)
    slatedb.output("metadata", done.notes, settings=settings)
    lance.output("vectors", done.notes, settings=settings)
    watch("failure_rate", done, stream.watermarks, settings=settings, halt=halt)
    return graph


def process(
    events: Stream[Event],
    watermarks: Stream[Watermark],
    *failures: Stream[Failure],
    settings: Settings,
    open_history: Callable[[Settings], History] | None = None,
) -> Processed:
    """Turn events into documents, notes and windows; earlier failures join those of these steps.

    With `open_history`, records that come again after a restart end as they did before.
    """
    models, threads = profile(settings), settings.threads
    fetched = fetch.content("fetch", events, settings=settings, open_history=open_history)
    extracted = extract.documents("extract", fetched.fetched, settings=settings)
    documents = extracted.documents

    notes = chunk.chunks(
        "chunk",
        documents,
        embedding_model=models.embedding,
        threads=threads,
        processing_version=settings.processing_version,
    )
    most = settings.enrich_characters
    notes = embed.embeddings("embed", notes, model=models.embedding, threads=threads, most_characters=most)
    notes = entities.find("entities", notes, model=models.entities, threads=threads, most_characters=most)
    notes = concepts.key_phrases("concepts", notes, model=models.embedding, threads=threads, maker=settings.concepts)
    counted = windows.tumbling(
        "windows", documents, watermarks, length=settings.window_length, lateness=settings.lateness
    )
    failed = op.merge("failures", *failures, fetched.failures, extracted.failures, counted.late)
    return Processed(documents, notes, counted.aggregates, failed)


def watch(step_id: str, done: Processed, watermarks: Stream[Watermark], *, settings: Settings, halt: Halt) -> None:
    """Stop the flow through `halt` when too much of it fails."""
    failure_rate.guard(
        step_id,
        done.documents,
        done.failures,
        watermarks,
        limit=settings.failure_rate_limit,
        window=settings.failure_rate_window,
        halt=halt,
    )
