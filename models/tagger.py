"""Named entities of whole documents, by our own model or by any Hugging Face token classifier.

`load_tagger` finds the model, `Tagger.find` reads texts of any length: overlapping windows of all texts are grouped
by length, each token takes its label from the window in which it is most central, and word pieces are joined by their
offsets.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn

from core import stopping
from core.errors import ModelError, reason
from core.records import Entity
from models.embedder import well_formed
from models.entity.loading import OWN_FOLDER, base_tokenizer, is_own, load_own, unbounded
from models.fingerprint import weights_digest
from models.hardware import device, precision
from models.registry import locate
from models.spans import TYPES, kind_of, may_be_name, spans, trimmed

__all__ = ["EMBEDDED", "Tagger", "TokenClassifier", "Window", "load_tagger", "windows"]

EMBEDDED = "embedded"
"""The name of the model that ships with the product."""

# Texts are read this many characters at a time: a token costs some hundred bytes, and a document may have millions.
READ_CHARACTERS = 500_000

_loading = threading.Lock()

_Integers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]


class TokenClassifier(Protocol):
    """A network that gives each token of a window a probability per label."""

    @property
    def module(self) -> nn.Module:
        """What holds the weights."""

    @property
    def labels(self) -> Sequence[str]:
        """O, and types with or without B- and I-."""

    @property
    def window_tokens(self) -> int:
        """Most tokens that it reads at once, special tokens included."""

    @property
    def overlap_tokens(self) -> int:
        """Tokens that neighbouring windows share at least."""

    @property
    def needs_capital(self) -> bool:
        """Whether what has lower-case letters only is taken for noise."""

    def features(
        self, text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None], /
    ) -> npt.NDArray[np.int64]:
        """What the network wants to know of each token beside its id: (tokens x anything)."""

    def probabilities(self, ids: Tensor, mask: Tensor, extra: Tensor, /) -> Tensor:
        """Probabilities (batch x length x labels) for ids and mask (batch x length) and features."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, end) go through the network, the labels of [keep_start, keep_end) are taken."""

    start: int
    end: int
    keep_start: int
    keep_end: int


def windows(length: int, size: int, overlap: int) -> list[Window]:
    """Cover `length` tokens by windows of at most `size`; what is kept covers each token once.

    Neighbours share at least `overlap` tokens (less than `size`) and are cut in the middle of what they share.
    """
    if length <= size:
        return [Window(0, length, 0, length)] if length else []
    # The last window is moved back to full size, so that no token is judged with little before it.
    starts = [*range(0, length - size, size - overlap), length - size]
    cuts = [(later + earlier + size) // 2 for earlier, later in itertools.pairwise(starts)]
    kept = zip(starts, [0, *cuts], [*cuts, length], strict=True)
    return [Window(start, start + size, first, last) for start, first, last in kept]


class Tagger:
    """Finds entities; threads may share it.

    `batch_tokens` bounds the padded word pieces that go through the network at once.
    """

    def __init__(self, network: TokenClassifier, tokenizer: Tokenizer, *, batch_tokens: int = 2048) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._kinds = [kind_of(label) for label in network.labels]
        self.special_tokens = _special_tokens(tokenizer)
        """The ids that the model wants before and after a text."""
        self._prefix, self._suffix = self.special_tokens

    @property
    def network(self) -> TokenClassifier:
        """What gives the probabilities."""
        return self._network

    @cached_property
    def digest(self) -> str:
        """What entities depend on: weights, labels, tokenizer, windows, precision; 64 hex digits."""
        network = self._network
        windows_of = (network.window_tokens, network.overlap_tokens, network.needs_capital)
        return weights_digest(network.module, self._tokenizer.to_str(), str(windows_of), *network.labels)

    def find(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Return the entities of each text, ordered by start, none overlapping; `text[start:end] == entity.text`.

        `score` is the mean probability of the entity's labels over its words. Memory is bounded, whatever the length
        of the texts: a very long one is read in pieces, which begin at a paragraph, a line or a word.
        """
        found: list[list[Entity]] = [[] for _ in texts]
        for group in _groups(texts):
            pieces = [texts[number][start:end] for number, start, end in group]
            for (number, start, _), entities in zip(group, self._find(pieces), strict=True):
                found[number] += [
                    Entity(entity.text, entity.type, entity.score, start + entity.start, start + entity.end)
                    for entity in entities
                ]
        return found

    def _find(self, texts: Sequence[str]) -> Iterator[list[Entity]]:
        encodings = self._tokenizer.encode_batch([well_formed(text) for text in texts], add_special_tokens=False)
        probabilities = self._classify(texts, encodings)
        for text, encoding, scores in zip(texts, encodings, probabilities, strict=True):
            yield self.entities_of(text, encoding.offsets, encoding.word_ids, scores)

    def _classify(self, texts: Sequence[str], encodings: Sequence[Any]) -> list[_Floats]:
        """Probabilities (tokens x labels) of each text."""
        size = self._network.window_tokens - len(self._prefix) - len(self._suffix)
        jobs: list[tuple[int, Window]] = []
        results, ids, extras = [], [], []
        for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            results.append(np.zeros((len(encoding.ids), len(self._kinds)), dtype=np.float32))
            ids.append(np.asarray(encoding.ids, dtype=np.int64))
            extras.append(self._network.features(text, encoding.offsets, encoding.word_ids))
            jobs += [(number, window) for window in windows(len(encoding.ids), size, self._network.overlap_tokens)]
        jobs.sort(key=lambda job: job[1].end - job[1].start)
        for batch in _batches(jobs, self._batch_tokens, len(self._prefix) + len(self._suffix)):
            stopping.interrupt_if_overdue()
            scores = self._run(
                [ids[number][window.start : window.end] for number, window in batch],
                [extras[number][window.start : window.end] for number, window in batch],
            )
            for (number, window), score in zip(batch, scores, strict=True):
                first = len(self._prefix) - window.start
                results[number][window.keep_start : window.keep_end] = score[
                    window.keep_start + first : window.keep_end + first
                ]
        return results

    def _run(self, ids: Sequence[_Integers], extras: Sequence[_Integers]) -> _Floats:
        edges = len(self._prefix) + len(self._suffix)
        shape = (len(ids), max(map(len, ids)) + edges)
        tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
        extra = np.zeros((*shape, extras[0].shape[1]), dtype=np.int64)
        for row, (one, more) in enumerate(zip(ids, extras, strict=True)):
            tokens[row, : len(one) + edges] = [*self._prefix, *one, *self._suffix]
            mask[row, : len(one) + edges] = True
            extra[row, len(self._prefix) : len(self._prefix) + len(one)] = more
        with torch.inference_mode():
            found = self._network.probabilities(*map(torch.from_numpy, (tokens, mask, extra)))
        return found.float().cpu().numpy()

    def entities_of(
        self, text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None], probabilities: _Floats
    ) -> list[Entity]:
        """Join tokens with probabilities (tokens x labels) to entities; `offsets` are into `text`."""
        found: list[Entity] = []
        end_of_previous = 0
        for kind, start, end, score in spans(text, offsets, words, probabilities, self._kinds):
            start, end = trimmed(text, max(start, end_of_previous), end)
            name = text[start:end]
            if any(map(str.isalpha, name)) and (not self._network.needs_capital or may_be_name(name)):
                end_of_previous = end
                found.append(Entity(name, kind, score, start, end))
        return found


def _groups(texts: Sequence[str]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut texts into pieces (number of the text, start, end), in groups of about READ_CHARACTERS characters."""
    group: list[tuple[int, int, int]] = []
    characters = 0
    for number, text in enumerate(texts):
        start = 0
        while start < len(text):
            end = _piece_end(text, start)
            group.append((number, start, end))
            characters += end - start
            start = end
            if characters >= READ_CHARACTERS:
                yield group
                group, characters = [], 0
    if group:
        yield group


def _piece_end(text: str, start: int) -> int:
    limit = start + READ_CHARACTERS
    if limit >= len(text):
        return len(text)
    for mark in ("\n\n", "\n", " "):
        place = text.rfind(mark, start + READ_CHARACTERS // 2, limit)
        if place >= 0:
            return place + len(mark)
    return limit


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the model wants before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    place = full.index(bare[0])
    return full[:place], full[place + len(bare) :]


def _batches(jobs: Iterable[tuple[int, Window]], budget: int, edges: int) -> Iterator[list[tuple[int, Window]]]:
    """Group jobs of rising length, so that the padded tokens of a group stay within the budget."""
    batch: list[tuple[int, Window]] = []
    for job in jobs:
        if batch and (len(batch) + 1) * (job[1].end - job[1].start + edges) > budget:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


class _HuggingFace:
    """A token classifier as transformers loads it."""

    needs_capital = False

    def __init__(self, model: Any, *, window_tokens: int) -> None:
        self.labels: list[str] = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.window_tokens, self.overlap_tokens = window_tokens, window_tokens // 4
        self._device = device()
        self.module = model.eval().to(self._device, precision(self._device))

    def features(
        self, _text: str, offsets: Sequence[tuple[int, int]], _words: Sequence[int | None]
    ) -> npt.NDArray[np.int64]:
        return np.zeros((len(offsets), 0), dtype=np.int64)

    def probabilities(self, ids: Tensor, mask: Tensor, _extra: Tensor) -> Tensor:
        logits: Tensor = self.module(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
        return torch.softmax(logits.float(), dim=-1)


def load_tagger(name: str, *, threads: int | None) -> Tagger:
    """Load `embedded`, or what `models.registry.locate` finds: a token classifier, safetensors only, no remote code.

    A model is loaded once per process. `threads` sets torch's threads of the whole process. Raises ModelError when
    the model can't be found or used.
    """
    # Workers are threads: without the lock each would load the model when the first notes arrive.
    with _loading:
        if threads is not None:
            torch.set_num_threads(threads)
        return _load(name)


@cache
def _load(name: str) -> Tagger:
    if name == EMBEDDED:
        return Tagger(load_own(OWN_FOLDER), base_tokenizer())
    located = locate(name)
    if is_own(Path(located)):
        return Tagger(load_own(Path(located)), base_tokenizer())
    return _load_hugging_face(name, located)


def _load_hugging_face(name: str, located: str) -> Tagger:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(located, trust_remote_code=False)
        model, report = AutoModelForTokenClassification.from_pretrained(
            located, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"} else ""
        raise ModelError(
            f'entity model "{name}" can\'t be loaded{offline}: {reason(error)}. Give a folder with config.json,'
            f" tokenizer.json and model.safetensors, a name of the hub that can be reached, or {EMBEDDED}"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f'entity model "{name}" has no fast tokenizer (tokenizer.json), which gives the offsets')
    if report["missing_keys"]:
        raise ModelError(f'"{name}" is no token classifier: it has no {min(report["missing_keys"])}')
    labels = [str(label) for label in model.config.id2label.values()]
    if not any(kind_of(label)[1] for label in labels):
        raise ModelError(f'entity model "{name}" has the labels {", ".join(labels)}, none of {", ".join(TYPES)}')
    most = min(256, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 256))
    return Tagger(_HuggingFace(model, window_tokens=most), unbounded(tokenizer.backend_tokenizer))
