"""What a text costs that was enriched before: the steps of the flow, computed and looked up, on a local S3.

    python -m bench.enrichment_replay [--documents 40]

READMEs of installed packages are enriched and written to the metadata store as the flow does; then the same texts
come again, as in a replay with another processing version. The local S3 is a process in Python on the same cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource, run_main

from bench.documents import readmes
from bench.enrichment_memory import Watch
from builders import event_of, record_of
from core import aws
from core.records import Document, Note
from core.settings import Settings
from core.telemetry import REUSED, configure_logging
from models.registry import profile
from models.start import load_models
from operators import chunk, concepts, embed, entities
from operators.reuse import Recipe, Reuse
from pkm.stack import local_aws
from sinks import slatedb
from sinks.kept_results import StoredResults

BATCH = 20
LEAST_RATIO = 50.0


def enriched(documents: list[Document], settings: Settings, *, version: str) -> tuple[list[Note], float]:
    """Run the steps over the documents; returns the notes, and the seconds without what the engine takes to start."""
    models = profile(settings)
    recipe = Recipe(
        embedding_model=models.embedding,
        entity_model=models.entities,
        maker=settings.concepts,
        most_characters=settings.enrich_characters,
        threads=None,
    )
    reuse = Reuse(recipe, lambda: StoredResults(settings))
    # What the first batch of a flow pays once: digests of the models, readers of the store.
    reuse.fill([Note(replace(documents[0], text="warm"), version)])
    out: list[Note] = []
    flow = Dataflow("bench")
    stream = op.input("in", flow, TestingSource(documents, batch_size=BATCH))
    notes = chunk.chunks(
        "chunk", stream, embedding_model=models.embedding, threads=None, processing_version=version, reuse=reuse
    )
    notes = embed.embeddings("embed", notes, model=models.embedding, threads=None, entity_model=models.entities)
    notes = entities.find("entities", notes, model=models.entities, threads=None)
    notes = concepts.key_phrases("concepts", notes, model=models.embedding, threads=None)
    began = time.perf_counter()
    op.inspect("out", notes, lambda _step, note: out.append(note))
    op.output("end", notes, Watch(every=10**9))
    run_main(flow)
    return out, time.perf_counter() - began


def write(notes: list[Note], settings: Settings) -> None:
    flow = Dataflow("bench")
    stream = op.input("in", flow, TestingSource(notes, batch_size=BATCH))
    slatedb.output("metadata", stream, settings=settings)
    run_main(flow)


def main() -> int:
    """Measure and print; returns 1 when a text that comes again is not looked up, or not fast enough."""
    parser = argparse.ArgumentParser(prog="python -m bench.enrichment_replay", description=__doc__)
    parser.add_argument("--documents", type=int, default=40)
    options = parser.parse_args()
    found = readmes(options.documents)
    documents = [
        replace(
            readme.document,
            event=event_of(note_id=f"{number:032x}", event_id=f"{number:032x}", record=record_of(number)),
        )
        for number, readme in enumerate(found)
    ]
    with local_aws() as variables:
        os.environ |= variables
        settings = Settings(log_level="warning")
        configure_logging(settings)
        aws.s3_client(settings).create_bucket(Bucket=settings.bucket)
        slatedb.create_store(settings)
        load_models(settings)
        notes, computed = enriched(documents, settings, version="1")
        write(notes, settings)
        before = REUSED._value.get()
        again, looked_up = enriched(documents, settings, version="2")
    reused = int(REUSED._value.get() - before)
    same = all(
        (one.entities, one.concepts, one.chunks) == (other.entities, other.concepts, other.chunks)
        for one, other in zip(notes, again, strict=True)
    )
    count = len(documents)
    print(f"{count} READMEs, {sum(len(document.text) for document in documents):,} characters")
    print(f"computed   {computed:8.2f} s   {count / computed:8.2f} documents/s")
    print(f"looked up  {looked_up:8.2f} s   {count / looked_up:8.2f} documents/s   ({reused} of {count} reused)")
    ratio = computed / looked_up
    print(f"ratio      {ratio:8.1f}   target {LEAST_RATIO:.0f}{'' if ratio >= LEAST_RATIO else '   MISSED'}")
    return int(reused != count or not same or ratio < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
