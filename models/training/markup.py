"""Labelled sentences, their bracket notation `[PER Ada] wrote it`, and the score of found spans against them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

__all__ = ["CORE", "TYPES", "Labelled", "Score", "development", "intervals", "parse", "read", "score"]

TYPES = ("PER", "ORG", "LOC", "MISC")
CORE = TYPES[:3]
"""The types that the promise on quality is about."""

_SUMS = {**{kind: frozenset({kind}) for kind in TYPES}, "core": frozenset(CORE), "micro": frozenset(TYPES)}
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


def read(stored: str) -> list[Labelled]:
    r"""Read a file of texts in bracket notation, one a line: `\n` is a line break, lines with % are comments."""
    lines = (line for line in stored.splitlines() if line and not line.startswith("%"))
    return [parse(line.replace(r"\n", "\n")) for line in lines]


def development() -> list[Labelled]:
    """Return the hand-written sentences that are looked at while the model is made, and never trained on."""
    return read(resources.files(__package__).joinpath("development.txt").read_text(encoding="utf-8"))


def score(truth: Iterable[Labelled], found: Iterable[Iterable[tuple[int, int, str]]]) -> Mapping[str, Score]:
    """Score exact matches of span and type, per type, over PER, ORG and LOC (`core`) and over all (`micro`)."""
    counts = _counts(truth, found).sum(axis=0)
    scores = {}
    for kind, (correct, proposed, expected) in zip(_SUMS, counts.tolist(), strict=True):
        precision = correct / proposed if proposed else 0.0
        recall = correct / expected if expected else 0.0
        scores[kind] = Score(precision, recall, float(_f1(correct, proposed, expected)), expected)
    return scores


def intervals(
    truth: Iterable[Labelled], found: Iterable[Iterable[tuple[int, int, str]]], *, seed: int, rounds: int = 2000
) -> Mapping[str, tuple[float, float]]:
    """Where F1 would lie in 95 of 100 sets of as many such texts: percentiles of a bootstrap over the texts."""
    counts = _counts(truth, found)
    chance = np.random.default_rng(seed)
    drawn = np.stack([counts[chance.integers(len(counts), size=len(counts))].sum(axis=0) for _ in range(rounds)])
    low, high = np.percentile(_f1(*np.moveaxis(drawn, -1, 0)), (2.5, 97.5), axis=0)
    return {kind: (float(low[place]), float(high[place])) for place, kind in enumerate(_SUMS)}


def _counts(truth: Iterable[Labelled], found: Iterable[Iterable[tuple[int, int, str]]]) -> npt.NDArray[np.int64]:
    """Spans per text and sum (texts x sums x 3): correct, proposed, expected."""
    rows = []
    for sentence, spans in zip(truth, found, strict=True):
        expected, proposed = set(sentence.spans), set(spans)
        sets = (expected & proposed, proposed, expected)
        rows.append([[sum(kind in kinds for _, _, kind in one) for one in sets] for kinds in _SUMS.values()])
    return np.array(rows, dtype=np.int64).reshape(-1, len(_SUMS), 3)


def _f1(correct: npt.ArrayLike, proposed: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.float64]:
    # 2PR / (P + R), written in counts; without any span it is 0.
    return 2 * np.asarray(correct) / np.maximum(np.add(proposed, expected), 1)
