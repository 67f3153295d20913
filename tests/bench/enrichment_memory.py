"""Whether the memory of enrichment stays flat: 5,000 documents through the steps of the flow, on one worker.

    python -m bench.enrichment_memory [--documents 5000] [--characters 500]

Most documents are the beginnings of READMEs of installed packages, each with a line of its own, so that thousands
take minutes; every 250th is whole, the longest among them. Prints the resident memory as it goes, and its peak.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import TestingSource, run_main

from bench.documents import readmes
from builders import document_of
from core.records import Document
from core.settings import Settings
from core.telemetry import quiet_libraries
from models.registry import profile
from models.start import load_models
from operators import chunk, concepts, embed, entities

BATCH = 20
WHOLE_EVERY = 250
MOST_BYTES = 1.5 * 1024**3
# From when on memory should not grow, and by how much it may: allocators keep what they had.
WARM_SHARE = 0.2
MOST_GROWTH = 0.1


def documents(count: int, characters: int) -> Iterator[Document]:
    texts = sorted((document.text for document in readmes()), key=len, reverse=True)
    whole = itertools.cycle(texts[:10])
    for number in range(count):
        text = next(whole) if number % WHOLE_EVERY == WHOLE_EVERY // 2 else texts[number % len(texts)][:characters]
        yield document_of(f"{text}\n\nThis is document {number}.")


def resident(name: str = "VmRSS") -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


class Watch(DynamicSink[Any]):
    """Counts what comes out, and looks at the memory now and then."""

    def __init__(self, every: int) -> None:
        self.count = 0
        self.every = every
        self.curve: list[tuple[int, int]] = []
        self.began = time.perf_counter()

    def build(self, step_id: str, worker_index: int, worker_count: int) -> WatchPart:
        return WatchPart(self)


class WatchPart(StatelessSinkPartition[Any]):
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def write_batch(self, items: list[Any]) -> None:
        watch = self._watch
        before, watch.count = watch.count, watch.count + len(items)
        if watch.count // watch.every > before // watch.every:
            watch.curve.append((watch.count, resident()))
            rate = watch.count / (time.perf_counter() - watch.began)
            print(f"{watch.count:6,} documents {resident() / 1024**2:8.0f} MiB   {rate:5.1f} documents/s", flush=True)


def main() -> int:
    """Run, print the curve; returns 1 when memory grows or its peak is too high."""
    parser = argparse.ArgumentParser(prog="python -m bench.enrichment_memory", description=__doc__)
    parser.add_argument("--documents", type=int, default=5_000)
    parser.add_argument("--characters", type=int, default=500)
    options = parser.parse_args()
    quiet_libraries()
    settings = Settings()
    models = profile(settings)
    load_models(settings)
    print(f"models loaded: {resident() / 1024**2:.0f} MiB")
    watch = Watch(every=max(options.documents // 20, 1))
    flow = Dataflow("bench")
    source = TestingSource(documents(options.documents, options.characters), batch_size=BATCH)
    stream = op.input("in", flow, source)
    notes = chunk.chunks("chunk", stream, embedding_model=models.embedding, threads=None, processing_version="1")
    notes = embed.embeddings("embed", notes, model=models.embedding, threads=None, entity_model=models.entities)
    notes = entities.find("entities", notes, model=models.entities, threads=None)
    notes = concepts.key_phrases("concepts", notes, model=models.embedding, threads=None)
    op.output("out", notes, watch)
    run_main(flow)
    warm = [size for count, size in watch.curve if count >= options.documents * WARM_SHARE]
    half = len(warm) // 2
    growth = max(warm[half:]) / max(warm[:half]) - 1
    peak = resident("VmHWM")
    print(f"{watch.count:,} documents, peak {peak / 1024**3:.2f} GiB, second half above the first by {growth:+.1%}")
    return int(watch.count != options.documents or peak > MOST_BYTES or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
