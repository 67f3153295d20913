"""Names what results depend on, so that they are kept only as long as they would come out the same."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["code_digest", "weights_digest"]

# What computes for us; another release may round or tokenise otherwise.
LIBRARIES = ("keybert", "scikit-learn", "sentence-transformers", "tokenizers", "torch", "transformers")


def weights_digest(model: nn.Module, *settings: str) -> str:
    """Digest of a model's weights as they were loaded, wherever they came from, and of `settings`: 64 hex digits."""
    import torch

    found = hashlib.sha256()
    for setting in settings:
        _add(found, setting.encode())
    for name, tensor in sorted(model.state_dict().items()):
        _add(found, f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Numpy has no bfloat16; bytes are the same in every type.
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


@lru_cache
def code_digest(modules: tuple[str, ...]) -> str:
    """Digest of the source of `modules` and of the releases of the libraries that compute for us: 64 hex digits.

    A change of a comment changes it too, which costs one computation; a forgotten version number would cost more.
    """
    found = hashlib.sha256()
    for library in LIBRARIES:
        _add(found, f"{library} {version(library)}".encode())
    for path in _sources(modules):
        _add(found, path.read_bytes())
    return found.hexdigest()


def _sources(modules: Iterable[str]) -> Iterable[Path]:
    for module in modules:
        yield Path(str(importlib.import_module(module).__file__))


def _add(found: hashlib._Hash, part: bytes) -> None:
    # Lengths are hashed too, so that neighbours can't trade bytes.
    found.update(len(part).to_bytes(8, "big"))
    found.update(part)
