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

from core import bytewax_run
from core.halt import Halt
from core.records import Document, Event, Failure, Note, Watermark, WindowAggregate
from core.recovery.attach import attach_to_bytewax_run
from core.settings import Settings, load_settings
from core.telemetry import configure_logging
from models.registry import profile
from models.start import load_models
from operators import chunk, concepts, dedupe, embed, entities, extract, failure_rate, fetch, parse, windows
from operators.outcomes import History
from operators.reuse import KeptResults, Recipe, Reuse
from sinks import iceberg, iceberg_history, iceberg_tables, kept_results, lance, slatedb
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
    # In a cluster most records leave for other processes, which read the objects themselves.
    graph = build(settings, read_ahead=bytewax_run.processes() == 1)
    attach_to_bytewax_run(settings, flow=FLOW, graph=graph, prepare=partial(load_models, settings))
    return graph


def build(settings: Settings, *, read_ahead: bool = True) -> Dataflow:
    """Build the dataflow; touches neither network nor models.

    With `read_ahead` objects of the next records are read while models work on those before.
    """
    graph, halt = Dataflow(FLOW), Halt()

    objects = fetch.Objects(settings)
    ahead = objects.ahead if read_ahead else None
    stream = kinesis.input("kinesis", graph, settings=settings, halt=halt, ahead=ahead)
    parsed = parse.events("parse", stream.records, bucket=settings.bucket)
    events = dedupe.unique("dedupe", parsed.events, retention=settings.dedupe_retention)
    done = process(
        events,
        stream.watermarks,
        parsed.failures,
        settings=settings,
        objects=objects,
        open_history=iceberg_history.StreamHistory,
        open_results=kept_results.StoredResults,
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
    objects: fetch.Objects,
    open_history: Callable[[Settings], History] | None = None,
    open_results: Callable[[Settings], KeptResults] | None = None,
) -> Processed:
    """Turn events into documents, notes and windows; earlier failures join those of these steps.

    With `open_history`, records that come again after a restart end as they did before. With `open_results`, texts
    that were enriched before are not enriched again.
    """
    models, threads, most = profile(settings), settings.threads, settings.enrich_characters
    fetched = fetch.content(
        "fetch", events, objects=objects, open_history=partial(open_history, settings) if open_history else None
    )
    extracted = extract.documents("extract", fetched.fetched, settings=settings)
    documents = extracted.documents

    notes = chunk.chunks(
        "chunk",
        documents,
        embedding_model=models.embedding,
        threads=threads,
        processing_version=settings.processing_version,
        reuse=_reuse(settings, open_results),
    )
    notes = embed.embeddings(
        "embed",
        notes,
        model=models.embedding,
        threads=threads,
        entity_model=models.entities,
        most_characters=most,
    )
    notes = entities.find("entities", notes, model=models.entities, threads=threads, most_characters=most)
    notes = concepts.key_phrases("concepts", notes, model=models.embedding, threads=threads, maker=settings.concepts)
    counted = windows.tumbling(
        "windows", documents, watermarks, length=settings.window_length, lateness=settings.lateness
    )
    failed = op.merge("failures", *failures, fetched.failures, extracted.failures, counted.late)
    return Processed(documents, notes, counted.aggregates, failed)


def _reuse(settings: Settings, open_results: Callable[[Settings], KeptResults] | None) -> Reuse | None:
    models = profile(settings)
    if open_results is None or not settings.reuse_results or not (models.embedding or models.entities):
        return None
    recipe = Recipe(
        embedding_model=models.embedding,
        entity_model=models.entities,
        maker=settings.concepts,
        most_characters=settings.enrich_characters,
        threads=settings.threads,
    )
    return Reuse(recipe, partial(open_results, settings))


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
