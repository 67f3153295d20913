"""Loads the models of a flow before its stream starts, so that a missing one stops it while nothing has begun."""

from __future__ import annotations

from core.settings import Settings
from models.registry import profile

__all__ = ["load_models"]


def load_models(settings: Settings, workers: int = 1) -> None:
    """Load the models of the chosen profile, once per process, and share the CPU among `workers`.

    Raises ModelError when one can't be found or loaded, ResourceError when one from S3 does not fit into memory.
    """
    models = profile(settings)
    if not (models.embedding or models.entities):
        return
    # Here, not at the top: importing torch takes seconds, and building a flow must not pay for it.
    from models.embedder import load_embedder
    from models.hardware import share_threads
    from models.shared_pass import load_shared_pass
    from models.tagger import load_tagger

    share_threads(settings.threads, workers=workers)
    if models.embedding:
        load_embedder(models.embedding, threads=settings.threads)
    if models.entities:
        load_tagger(models.entities, threads=settings.threads)
    if models.embedding and models.entities:
        load_shared_pass(models.embedding, models.entities, threads=settings.threads)
