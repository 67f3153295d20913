"""Turns texts into vectors with a sentence-transformers model, in forward passes of texts of nearly one length."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
from tokenizers import Tokenizer

from core import stopping
from core.errors import ModelError, reason
from core.records import Vector
from models import registry
from models.fingerprint import weights_digest
from models.hardware import device, precision

__all__ = ["Embedder", "groups", "load_embedder", "well_formed"]

# Tokens, padding included, of one forward pass. On two cores more is not faster; a GPU wants far more.
CPU_TOKENS = 2_048
GPU_TOKENS = 65_536
# Texts share a forward pass when the shortest has at least this part of the longest's tokens: short phrases are
# then in groups of equal length, where padding would cost half of the time, and chunks still fill a pass.
LEAST_FILL = 0.9
# So many texts are tokenised at a time to learn their lengths, so that memory stays bounded.
TOKENISED_TEXTS = 4_096

_loading = threading.Lock()


class Embedder:
    """A sentence-transformers model that embeds many texts at once; safe to share between threads.

    The vector of a text is that of `SentenceTransformer.encode(text, normalize_embeddings=True)`, whatever else is in
    the batch: cosine within 1e-5 in single precision, about 1e-3 in the half precision of CUDA.
    """

    def __init__(self, location: str, *, threads: int | None = None) -> None:
        # Here, not at the top: importing torch takes seconds, and building a flow must not pay for it.
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if threads is not None:
            torch.set_num_threads(threads)
        where = device()
        self._model = SentenceTransformer(
            location,
            device=where,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": precision(where)},
        ).eval()
        self.pass_tokens: int = GPU_TOKENS if where == "cuda" else CPU_TOKENS
        # The model's own tokenizer is not safe to share; forward passes are.
        self._lock = threading.Lock()
        # A copy that neither truncates nor pads, and is never written to: threads may share it.
        self._tokenizer: Tokenizer = Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Some models want a text of their own before each of ours.
        self._prompt: str | None = self._model.prompts.get(self._model.default_prompt_name or "") or None
        self._edge_tokens = len(self._tokenizer.encode(self._prompt or "").ids)
        self._prompt_tokens = self._edge_tokens - self._tokenizer.num_special_tokens_to_add(False)
        self.dimension: int = int(self._model.get_embedding_dimension() or 0)
        self.max_tokens: int = int(self._model.max_seq_length or 0) - self._edge_tokens
        if self.dimension < 1 or self.max_tokens < 1:
            raise ValueError("it says neither the dimension of its vectors nor the length of its input")

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, without truncation and padding; not to be changed."""
        return self._tokenizer

    @cached_property
    def digest(self) -> str:
        """What the vectors depend on: weights, tokenizer, length of input, prompt, precision; 64 hex digits."""
        settings = (self._tokenizer.to_str(), str(self._model), str(self.max_tokens), str(self._prompt))
        return weights_digest(self._model, *settings)

    def encode(self, texts: Sequence[str]) -> Vector:
        """Embed `texts`: one L2-normalised float32 row per text, in the order of `texts` (n x dimension).

        A text is cut after `max_tokens` tokens; what must not be cut is split into chunks before.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        sound = [well_formed(text) for text in texts]
        for group in groups(self._lengths(sound), self.pass_tokens):
            stopping.interrupt_if_overdue()
            vectors[group] = self._forward([sound[index] for index in group])
        return vectors

    def _forward(self, texts: list[str]) -> Vector:
        # What SentenceTransformer.encode does with one batch, but for its sorting; only tokenising is done alone.
        import torch
        from sentence_transformers.util import batch_to_device

        with self._lock:
            features = self._model.preprocess(texts, prompt=self._prompt)
        with torch.inference_mode():
            found = self._model(batch_to_device(features, self._model.device))["sentence_embedding"]
            found = torch.nn.functional.normalize(found[:, : self.dimension].float(), dim=1)
        rows: Vector = found.cpu().numpy()
        return rows

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        # Tokens of each text as the model sees it: special tokens included, no more than its input holds.
        most = self.max_tokens + self._edge_tokens
        lengths: list[int] = []
        for start in range(0, len(texts), TOKENISED_TEXTS):
            encodings = self._tokenizer.encode_batch(list(texts[start : start + TOKENISED_TEXTS]))
            lengths += [min(len(encoding.ids) + self._prompt_tokens, most) for encoding in encodings]
        return lengths


def load_embedder(name: str, *, threads: int | None) -> Embedder:
    """Return the embedder of the model `name` (see `models.registry.locate`), loaded once per process.

    `threads` sets how many CPU threads torch uses in this process; None leaves its default.

    Raises ModelError when there is no such model or it can't be loaded.
    """
    with _loading:
        return _load(name, threads)


@lru_cache
def _load(name: str, threads: int | None) -> Embedder:
    location = registry.locate(name)
    try:
        return Embedder(location, threads=threads)
    except Exception as error:  # loaders raise anything; the user wants the one line that matters
        raise ModelError(
            f'embedding model "{name}" can\'t be loaded: {reason(error)}. '
            "Set PKM_EMBEDDING_MODEL to an installed package, a folder or an s3:// prefix"
        ) from error


def well_formed(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, by as many question marks: all offsets stay."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def groups(lengths: Sequence[int], pass_tokens: int) -> Iterator[list[int]]:
    """Give indexes of texts that share a forward pass: of nearly one length, at most `pass_tokens` with padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    group: list[int] = []
    for index in order:
        longest = lengths[group[0]] if group else lengths[index]
        if group and (lengths[index] < LEAST_FILL * longest or longest * (len(group) + 1) > pass_tokens):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
