"""Runs a flow in this process: checks the world first, restores the newest snapshot, keeps snapshots on S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bytewax.dataflow import Dataflow

from core.errors import SettingsError
from core.recovery.attach import session
from core.settings import Settings
from flows import knowledge
from models.embedder import load_embedder
from models.registry import profile
from models.start import load_models
from pkm.engine import execute
from sinks import iceberg_catalog, lance, slatedb
from sources.kinesis_status import check_stream

__all__ = ["check_world", "run_flow"]

FLOWS: Mapping[str, Callable[[Settings], Dataflow]] = {knowledge.FLOW: knowledge.build}


def check_world(settings: Settings, *, flow: str, workers: int = 1) -> None:
    """Check models, stream, tables and stores before anything starts; loads the models, for so many workers.

    Raises the PkmError that a run would meet, while it is still cheap and easy to read.
    """
    if flow not in FLOWS:
        raise SettingsError(f'there is no flow "{flow}": choose one of {", ".join(FLOWS)}')
    models = profile(settings)
    check_stream(settings)
    iceberg_catalog.check_tables(settings)
    slatedb.check_store(settings)
    load_models(settings, workers)
    if models.embedding:
        dimension = load_embedder(models.embedding, threads=settings.threads).dimension
        lance.check_dataset(settings, dimension=dimension)


def run_flow(settings: Settings, *, flow: str, workers: int) -> dict[str, Any]:
    """Run `flow` until it ends or is interrupted; snapshots go to S3 all the while.

    Returns what happened. Raises the PkmError that stopped the flow, without the engine's wrapping.
    """
    started = time.monotonic()
    graph = FLOWS[flow](settings)
    with session(settings, flow=flow, directory=settings.recovery_dir / flow, process_id=0, graph=graph) as recovery:
        execute(graph, settings, directory=recovery.directory, workers=workers)
    restored = recovery.restored.snapshot if recovery.restored else None
    return {
        "flow": flow,
        "workers": workers,
        "resumed_from": restored.id if restored else None,
        "seconds": round(time.monotonic() - started, 1),
    }
