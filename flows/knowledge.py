"""The main dataflow: stream to text, text to entities, concepts and vectors, all of it into the lakehouse.

    python -m bytewax.run flows.knowledge:flow

The step ids are the recovery identity: a snapshot belongs to them, so they never change.
"""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from core.halt import Halt
from core.recovery.attach import attach_to_bytewax_run
from core.settings import Settings, load_settings
from core.telemetry import configure_logging
from models.registry import profile
from operators import chunk, concepts, dedupe, embed, entities, extract, failure_rate, fetch, parse, windows
from sinks import iceberg, iceberg_tables, lance, slatedb
from sources import kinesis

__all__ = ["FLOW", "build", "flow"]

FLOW = "knowledge"


def flow() -> Dataflow:
    """Build the dataflow from the environment; under `bytewax.run -r` its snapshots are kept on S3."""
    settings = load_settings()
    configure_logging(settings)
    attach_to_bytewax_run(settings, flow=FLOW)
    return build(settings)


def build(settings: Settings) -> Dataflow:
    """Build the dataflow; touches neither network nor models."""
    models, threads = profile(settings), settings.threads
    graph, halt = Dataflow(FLOW), Halt()

    stream = kinesis.input("kinesis", graph, settings=settings, halt=halt)
    parsed = parse.events("parse", stream.records, bucket=settings.bucket)
    events = dedupe.unique("dedupe", parsed.events, retention=settings.dedupe_retention)
    fetched = fetch.content("fetch", events, settings=settings)
    extracted = extract.documents("extract", fetched.fetched, settings=settings)
    documents = extracted.documents

    notes = chunk.chunks(
        "chunk",
        documents,
        embedding_model=models.embedding,
        threads=threads,
        processing_version=settings.processing_version,
    )
    notes = embed.embeddings("embed", notes, model=models.embedding, threads=threads)
    notes = entities.find("entities", notes, model=models.entities, threads=threads)
    notes = concepts.key_phrases("concepts", notes, model=models.embedding, threads=threads)
    counted = windows.tumbling(
        "windows", documents, stream.watermarks, length=settings.window_length, lateness=settings.lateness
    )
    failures = op.merge("failures", parsed.failures, fetched.failures, extracted.failures, counted.late)

    iceberg.output("bronze_notes", documents, table=iceberg_tables.BRONZE_NOTES, settings=settings)
    iceberg.output("bronze_failures", failures, table=iceberg_tables.BRONZE_FAILURES, settings=settings)
    iceberg.output("silver_notes", notes, table=iceberg_tables.SILVER_NOTES, settings=settings)
    iceberg.output("silver_metrics", counted.aggregates, table=iceberg_tables.SILVER_METRICS, settings=settings)
    slatedb.output("metadata", notes, settings=settings)
    lance.output("vectors", notes, settings=settings)

    failure_rate.guard(
        "failure_rate",
        documents,
        failures,
        stream.watermarks,
        limit=settings.failure_rate_limit,
        window=settings.failure_rate_window,
        halt=halt,
    )
    return graph
