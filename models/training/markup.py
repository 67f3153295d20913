"""Labelled sentences, their bracket notation `[PER Ada] wrote it`, and the score of found spans against them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

__all__ = ["TYPES", "Labelled", "Score", "held_out", "parse", "score"]

TYPES = ("PER", "ORG", "LOC", "MISC")

_MARK = re.compile(r"\[(PER|ORG|LOC|MISC) ([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its entities as (start, end, type), in order and without overlap."""

    text: str
    spans: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Precision, recall and F1 over exact spans, between 0 and 1; `support` is the number of true spans."""

    precision: float
    recall: float
    f1: float
    support: int


def parse(line: str) -> Labelled:
    """Read the bracket notation; other brackets stay text."""
    text, spans, place = "", [], 0
    for match in _MARK.finditer(line):
        text += line[place : match.start()]
        spans.append((len(text), len(text) + len(match[2]), match[1]))
        text += match[2]
        place = match.end()
    return Labelled(text + line[place:], tuple(spans))


def held_out() -> list[Labelled]:
    """Return the hand-written sentences that are scored and never trained on."""
    stored = resources.files(__package__).joinpath("heldout.txt").read_text(encoding="utf-8")
    return [parse(line) for line in stored.splitlines() if line and not line.startswith("#")]


def score(truth: Iterable[Labelled], found: Iterable[Iterable[tuple[int, int, str]]]) -> Mapping[str, Score]:
    """Score exact matches of span and type, per type and over all (`micro`)."""
    expected: Counter[str] = Counter()
    proposed: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for sentence, spans in zip(truth, found, strict=True):
        given = set(spans)
        for counter, chosen in (
            (expected, set(sentence.spans)),
            (proposed, given),
            (correct, given & set(sentence.spans)),
        ):
            counter.update(kind for _, _, kind in chosen)
            counter["micro"] += len(chosen)
    return {kind: _score(correct[kind], proposed[kind], expected[kind]) for kind in (*TYPES, "micro")}


def _score(correct: int, proposed: int, expected: int) -> Score:
    precision = correct / proposed if proposed else 0.0
    recall = correct / expected if expected else 0.0
    total = precision + recall
    return Score(precision, recall, 2 * precision * recall / total if total else 0.0, expected)
