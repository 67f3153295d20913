"""Vectors and entities out of one pass: our entity model stands on the lower half of the embedding model.

Embeddings and the first three layers of MiniLM are the same in both, and never trained. So they are computed once for
each chunk; from there the vector goes on through MiniLM's upper layers, and the labels through those of the entity
model. A chunk ends where a reader would pause. Where it is not at a blank line a name may still lie across, so the
entity model reads a window over that edge, and the labels in its middle are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from core import stopping
from core.records import Chunk, Entity, Vector
from models.embedder import Embedder, groups, load_embedder, well_formed
from models.entity.loading import OwnClassifier, base_weights
from models.entity.network import EntityNetwork, features, load_base
from models.registry import locate
from models.tagger import READ_CHARACTERS, Tagger, load_tagger

__all__ = ["SharedPass", "load_shared_pass"]

_PARAGRAPH = re.compile(r"\n\s*\n")

_Floats = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Tokens:
    """The tokens of a run of chunks of one text; offsets are into the text."""

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int | None] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Where each chunk's tokens begin and end."""


class SharedPass:
    """Embeds chunks and finds the entities of their texts; threads may share it.

    Vectors are those of the embedder (cosine within 1e-5). Entities are those of the tagger, but for words near the
    end of a chunk at a blank line, which it would see with what stands behind.
    """

    def __init__(self, embedder: Embedder, tagger: Tagger, classifier: OwnClassifier) -> None:
        self._tokenizer = embedder.tokenizer
        self._dimension = embedder.dimension
        self._pass_tokens = embedder.pass_tokens
        self._tagger = tagger
        self._classifier = classifier
        self._network = classifier.module
        parameter = next(self._network.parameters())
        whole = EntityNetwork()
        load_base(whole, base_weights(), upper=True)
        self._embedding_layers = whole.eval().upper.to(parameter.device, parameter.dtype)
        self._device = parameter.device

    def run(
        self, texts: Sequence[str], chunks: Sequence[Sequence[Chunk]]
    ) -> tuple[list[Vector], list[tuple[Entity, ...]]]:
        """Return for each text the L2-normalised vectors of its chunks, and the entities in them by start."""
        vectors: list[list[Vector]] = [[] for _ in texts]
        entities: list[list[Entity]] = [[] for _ in texts]
        for group in _portions(chunks):
            found = self._run([texts[number] for number, _ in group], [own for _, own in group])
            for (number, _), rows, named in zip(group, *found, strict=True):
                vectors[number].append(rows)
                entities[number] += named
        empty = np.empty((0, self._dimension), dtype=np.float32)
        return [np.concatenate([empty, *rows]) for rows in vectors], [tuple(named) for named in entities]

    @torch.inference_mode()
    def _run(
        self, texts: Sequence[str], chunks: Sequence[Sequence[Chunk]]
    ) -> tuple[list[Vector], list[list[Entity]]]:
        read = [self._tokens(own) for own in chunks]
        looks = [features(text, one.offsets, one.words) for text, one in zip(texts, read, strict=True)]
        labels = [np.zeros((len(one.ids), len(self._classifier.labels)), dtype=np.float32) for one in read]
        rows = [np.empty((len(one.places), self._dimension), dtype=np.float32) for one in read]
        jobs = [(number, *place) for number, one in enumerate(read) for place in one.places]
        orders = [(number, order) for number, one in enumerate(read) for order in range(len(one.places))]
        for group in groups([end - start + 2 for _, start, end in jobs], self._pass_tokens):
            stopping.interrupt_if_overdue()
            ids, mask, case = self._batch([jobs[index] for index in group], read, looks)
            visible = mask[:, None, None, :]
            hidden = self._network.base(ids, visible)
            found = self._labels(hidden, visible, case)
            for index, vector, label in zip(group, self._vectors(hidden, mask), found, strict=True):
                (number, start, end), (_, order) = jobs[index], orders[index]
                rows[number][order] = vector
                labels[number][start:end] = label[1 : end - start + 1]
        self._bridge(texts, chunks, read, looks, labels)
        named = [
            self._tagger.entities_of(text, one.offsets, one.words, own)
            for text, one, own in zip(texts, read, labels, strict=True)
        ]
        return rows, named

    def _bridge(
        self,
        texts: Sequence[str],
        chunks: Sequence[Sequence[Chunk]],
        read: Sequence[_Tokens],
        looks: Sequence[npt.NDArray[np.int64]],
        labels: Sequence[_Floats],
    ) -> None:
        reach = self._classifier.overlap_tokens
        edges = [
            (number, place)
            for number, (text, own, one) in enumerate(zip(texts, chunks, read, strict=True))
            for (before, after), (place, _) in zip(pairwise(own), one.places[1:], strict=True)
            if not _PARAGRAPH.search(text, before.end, after.start)
        ]
        jobs = [(number, max(edge - reach, 0), min(edge + reach, len(read[number].ids))) for number, edge in edges]
        for group in groups([end - start + 2 for _, start, end in jobs], self._pass_tokens):
            stopping.interrupt_if_overdue()
            ids, mask, case = self._batch([jobs[index] for index in group], read, looks)
            visible = mask[:, None, None, :]
            found = self._labels(self._network.base(ids, visible), visible, case)
            for index, label in zip(group, found, strict=True):
                (number, start, end), (_, edge) = jobs[index], edges[index]
                first, last = max(edge - reach // 2, start), min(edge + reach // 2, end)
                labels[number][first:last] = label[first - start + 1 : last - start + 1]

    def _vectors(self, hidden: Tensor, mask: Tensor) -> Vector:
        visible = mask[:, None, None, :]
        for layer in self._embedding_layers:
            hidden = layer(hidden, visible)
        weights = mask[:, :, None].float()
        mean = (hidden.float() * weights).sum(1) / weights.sum(1)
        vectors: Vector = functional.normalize(mean, dim=1).cpu().numpy()
        return vectors

    def _labels(self, hidden: Tensor, visible: Tensor, case: Tensor) -> _Floats:
        found: _Floats = torch.softmax(self._network.upper_half(hidden, visible, case).float(), dim=-1).cpu().numpy()
        return found

    def _batch(
        self,
        jobs: Sequence[tuple[int, int, int]],
        read: Sequence[_Tokens],
        looks: Sequence[npt.NDArray[np.int64]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, after = self._tagger.special_tokens
        shape = (len(jobs), max(end - start for _, start, end in jobs) + len(before) + len(after))
        ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
        case = np.zeros((*shape, looks[0].shape[1]), dtype=np.int64)
        for row, (number, start, end) in enumerate(jobs):
            tokens = [*before, *read[number].ids[start:end], *after]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
            case[row, len(before) : len(before) + end - start] = looks[number][start:end]
        made = [torch.from_numpy(one).to(self._device) for one in (ids, mask, case)]
        return made[0], made[1], made[2]

    def _tokens(self, chunks: Sequence[Chunk]) -> _Tokens:
        read, words = _Tokens(), 0
        texts = [well_formed(chunk.text) for chunk in chunks]
        for chunk, encoding in zip(
            chunks, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            begin = len(read.ids)
            read.ids += encoding.ids
            read.offsets += [(first + chunk.start, last + chunk.start) for first, last in encoding.offsets]
            # No word goes on in another chunk.
            read.words += [None if word is None else word + words for word in encoding.word_ids]
            words += len(encoding.ids)
            read.places.append((begin, len(read.ids)))
        return read


def _portions(chunks: Sequence[Sequence[Chunk]]) -> Iterator[list[tuple[int, list[Chunk]]]]:
    """Share the chunks out to portions of about READ_CHARACTERS: a token costs some hundred bytes."""
    portion: list[tuple[int, list[Chunk]]] = []
    characters = 0
    for number, own in enumerate(chunks):
        for chunk in own:
            if not portion or portion[-1][0] != number:
                portion.append((number, []))
            portion[-1][1].append(chunk)
            characters += len(chunk.text)
            if characters >= READ_CHARACTERS:
                yield portion
                portion, characters = [], 0
    if portion:
        yield portion


@lru_cache
def load_shared_pass(embedding_model: str, entity_model: str, *, threads: int | None) -> SharedPass | None:
    """Return the one pass of two models, or None when the one does not stand on the other.

    Raises ModelError when one of them can't be found or loaded.
    """
    tagger = load_tagger(entity_model, threads=threads)
    classifier = tagger.network
    if not isinstance(classifier, OwnClassifier) or Path(locate(embedding_model)) != base_weights().parent:
        return None
    return SharedPass(load_embedder(embedding_model, threads=threads), tagger, classifier)
