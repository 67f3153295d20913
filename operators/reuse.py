"""Takes what was computed from an unchanged text before, so that a replay or a re-upload costs a look-up.

A pure cache: what is not found, damaged or foreign is computed, and losing all of it costs time only.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from core import results
from core.records import Note
from core.telemetry import REUSED
from models.embedder import load_embedder
from models.fingerprint import code_digest
from operators.concepts import Maker
from operators.embed import mean

__all__ = ["KeptResults", "Recipe", "Reuse"]

# All that decides what comes out of a text, but for the models.
_MODULES = (
    *("models.embedder", "models.remembered", "models.tagger", "models.spans"),
    *("models.shared_pass", "models.entity.network"),
    *("operators.chunk", "operators.embed", "operators.entities", "operators.concepts"),
    *("operators.phrases", "operators.ngrams", "operators.reading"),
)


class KeptResults(Protocol):
    """Results that earlier runs have kept."""

    def find(self, wanted: Mapping[str, str]) -> Mapping[str, bytes]:
        """Return what is kept under those of the keys that there are; `wanted` has a note's id for each key.

        Never raises for a store that does not answer: then nothing is found.
        """


@dataclass(frozen=True)
class Recipe:
    """What the results of a text depend on: models, parameters and code, but not the processing version."""

    embedding_model: str | None
    entity_model: str | None
    maker: Maker
    most_characters: int | None
    threads: int | None

    @cached_property
    def digest(self) -> bytes:
        """Digest of all of it; loads the models. Raises ModelError when one can't be."""
        parts = [code_digest(_MODULES), self.maker, str(self.most_characters)]
        if self.embedding_model is not None:
            parts.append(f"embedding {load_embedder(self.embedding_model, threads=self.threads).digest}")
        if self.entity_model is not None:
            # Here, not at the top: importing torch takes seconds, and building a flow must not pay for it.
            from models.tagger import load_tagger

            parts.append(f"entities {load_tagger(self.entity_model, threads=self.threads).digest}")
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def key_of(self, text: str) -> str:
        """Name the results of `text`: 64 hex digits."""
        return hashlib.sha256(self.digest + text.encode("utf-8", "surrogatepass")).hexdigest()


class Reuse:
    """Fills in notes whose results are kept; workers of a process may share it."""

    def __init__(self, recipe: Recipe, open_results: Callable[[], KeptResults]) -> None:
        self._recipe = recipe
        self._open_results = open_results
        self._results: KeptResults | None = None
        self._opening = threading.Lock()

    def fill(self, notes: Sequence[Note]) -> list[Note]:
        """Return the notes in order, each with its `result_key`, and with its results where they are kept."""
        keyed = [
            replace(note, result_key=self._recipe.key_of(note.document.text)) if note.document.text.strip() else note
            for note in notes
        ]
        kept = self._kept().find({note.result_key: note.event.note_id for note in keyed if note.result_key})
        return [_filled(note, kept[note.result_key]) if note.result_key in kept else note for note in keyed]

    def _kept(self) -> KeptResults:
        with self._opening:
            if self._results is None:
                self._results = self._open_results()
            return self._results


def _filled(note: Note, stored: bytes) -> Note:
    found = results.decode(stored, key=note.result_key, text=note.document.text)
    if found is None:
        return note
    REUSED.inc()
    return replace(
        note,
        chunks=found.chunks,
        embeddings=found.embeddings,
        vector=None if found.embeddings is None else mean(found.embeddings),
        entities=found.entities,
        concepts=found.concepts,
        reused=True,
    )
