"""Writes the page on quality: `python -m bench.quality > docs/quality.md`.

Shows ten documents with their concepts by both makers of candidates and their entities, scores the entity model on
`tests/models/natural.txt`, and sums up what a reader chose between the makers. Everything is computed anew; READMEs
are those of the installed, locked packages.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import metadata
from pathlib import Path

from bench.documents import notes, readmes
from bench.side_by_side import MODEL, READINGS, concepts_of, winners
from core.records import Entity
from models.embedder import load_embedder
from models.registry import locate
from models.tagger import Tagger, load_tagger
from models.training.markup import Labelled, intervals, read, score

HERE = Path(__file__).parent
NOTES = HERE / "notes"
SENTENCES = HERE.parent / "models" / "natural.txt"
PACKAGES = ("faker", "keybert", "mpmath", "rich", "scikit-learn", "sortedcontainers", "structlog")
EXCERPT_CHARACTERS = 240
MOST_NAMES = 12

HEAD = """\
# Quality

What the models find, so that a reader can judge. `make quality` writes this page from the models and documents at
hand.
"""

ENTITIES = """\
## Entities

The entity model that ships with the product, on the sentences of `tests/models/natural.txt`: notes, minutes, news,
headlines, mail, READMEs, travel and research notes, lists; {empty} of {all} hold no entity. They were written by
hand, with their rules, before their writer had read the generator of the training texts, and nothing was tuned to
them. A name counts when span and type are exact. The interval is where F1 would lie in 95 of 100 such sets
(bootstrap over the sentences). More in the [model card](../models/entity/README.md).

| | precision | recall | F1 | 95 % of F1 | names |
|---|---|---|---|---|---|
"""

READING = """\
## Concepts: `phrases` against `keybert`

Candidates are made in two ways (`PKM_CONCEPTS`, see [settings](settings.md)); the ranking is the same. One reader
read the beginning of each of these READMEs, then the two lists in an order unknown to them, chose, wrote the choice
down, and only then asked which was which (`python -m bench.side_by_side --seed 41`). The second reading, of other
documents, came after mark-up of reStructuredText had been taken out of the candidates. One reader judged, so this is
a hint, not a measurement; and the two makers can be told apart by their looks, because `keybert` joins words across
stop words, punctuation and lines.
"""

DOCUMENTS = """\
## Ten documents

Seven READMEs of installed packages, of which only the beginning is quoted, and three notes from `tests/bench/notes`.
Concepts come closest first. Entities are the most frequent ones, with their number.
"""


def main() -> int:
    """Print the page."""
    tagger = load_tagger("embedded", threads=None)
    print(HEAD)
    print("\n".join(scores(tagger, read(SENTENCES.read_text(encoding="utf-8")))) + "\n")
    print("\n".join(read_side_by_side()) + "\n")
    print(DOCUMENTS)
    embedder = load_embedder(locate(MODEL), threads=None)
    for title, source, text in documents():
        print(f"### {title}\n\n{source}\n\n> {excerpt(text)}\n")
        for maker in ("phrases", "keybert"):
            print(f"- {maker}: {', '.join(concepts_of(text, embedder, maker))}")
        (found,) = tagger.find([text])
        print(f"- entities: {'; '.join(names(found)) or 'none'}\n")
    return 0


def scores(tagger: Tagger, sentences: Sequence[Labelled]) -> Iterator[str]:
    """Give the section on the scores of the entity model."""
    found = tagger.find([sentence.text for sentence in sentences])
    spans = [[(entity.start, entity.end, entity.type) for entity in entities] for entities in found]
    yield ENTITIES.format(empty=sum(not one.spans for one in sentences), all=len(sentences)).rstrip()
    names_of = {"core": "PER, ORG and LOC", "micro": "all"}
    ranges = intervals(sentences, spans, seed=1)
    for kind, one in score(sentences, spans).items():
        low, high = ranges[kind]
        yield (
            f"| {names_of.get(kind, kind)} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} |"
            f" {low:.2f} to {high:.2f} | {one.support} |"
        )


def read_side_by_side() -> Iterator[str]:
    """Give the section on what the reader chose."""
    yield READING.rstrip() + "\n"
    yield "| seed | documents | `phrases` | `keybert` | equal |\n|---|---|---|---|---|"
    for reading in READINGS:
        count = Counter(winners(reading.votes, reading.orders()))
        sums = " | ".join(str(count[name]) for name in ("phrases", "keybert", "neither"))
        yield f"| {reading.seed} | {len(reading.votes)} | {sums} |"


def documents() -> Iterator[tuple[str, str, str]]:
    """Give title, source and text of the documents, READMEs first."""
    texts = {readme.name: readme.text for readme in readmes()}
    for name in PACKAGES:
        about = metadata(name)
        licence = about.get("License-Expression") or str(about.get("License")).splitlines()[0]
        yield name, f"README of {name} {about['Version']} ({licence}), {len(texts[name]):,} characters.", texts[name]
    for note in notes(NOTES):
        yield note.name, f"`tests/bench/notes/{note.name}.md`, {len(note.text):,} characters.", note.text


def excerpt(text: str) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text[: 2 * EXCERPT_CHARACTERS].split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[:EXCERPT_CHARACTERS].rpartition(" ")[0] + " …"


def names(found: Iterable[Entity]) -> Iterator[str]:
    """Give each type with its most frequent names."""
    counts: dict[str, Counter[str]] = {}
    for entity in found:
        counts.setdefault(entity.type, Counter())[" ".join(entity.text.split())] += 1
    for kind, counter in sorted(counts.items()):
        shown = [f"{name} ({count})" if count > 1 else name for name, count in counter.most_common(MOST_NAMES)]
        more = f" and {len(counter) - len(shown)} more" if len(counter) > len(shown) else ""
        yield f"{kind} {', '.join(shown)}{more}"


if __name__ == "__main__":
    sys.exit(main())
