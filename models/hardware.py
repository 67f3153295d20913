"""Where models run, in which precision, and on how many CPU threads."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["device", "precision", "share_threads"]


def device() -> str:
    """Return `cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(device: str) -> torch.dtype:
    """Return what models compute in: single precision on a CPU, half of it on CUDA (bfloat16 where it is native).

    In half precision a vector agrees with that of single precision to about 1e-3 in cosine.
    """
    import torch

    if device != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def share_threads(threads: int | None, *, workers: int) -> None:
    """Give each forward pass `threads` CPU threads, or without a number an equal share of what torch would take.

    Torch takes all cores that this process may use, or OMP_NUM_THREADS. Workers are threads of this process, and
    each may be in a forward pass of its own. To be called before the workers start.
    """
    import torch

    torch.set_num_threads(threads or max(_all_threads() // workers, 1))


@lru_cache(maxsize=1)
def _all_threads() -> int:
    # Asked once: what was set for an earlier flow of this process is no measure for the next.
    import torch

    return torch.get_num_threads()
