"""Runs a dataflow in this process on Bytewax, with an error that says what to do instead of the engine's own."""

from __future__ import annotations

from pathlib import Path

from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.recovery import RecoveryConfig
from bytewax.run import cli_main

from core.errors import PkmError
from core.settings import Settings

__all__ = ["execute"]


def execute(graph: Dataflow, settings: Settings, *, directory: Path, workers: int) -> None:
    """Run `graph` until it ends or is interrupted, with its recovery state in `directory`.

    Raises the PkmError that stopped the flow, without the engine's wrapping.
    """
    try:
        # A cluster of one: its workers are threads, so this thread stays free for signals, and an error comes back as
        # an exception instead of a message from the engine's panic handler.
        cli_main(  # type: ignore[no-untyped-call]
            graph,
            workers_per_process=workers,
            process_id=0,
            addresses=["127.0.0.1:0"],
            epoch_interval=settings.epoch,
            recovery_config=RecoveryConfig(directory),  # type: ignore[no-untyped-call]
        )
    except BytewaxRuntimeError as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> BaseException:
    # The engine wraps what a step raised once per layer; the innermost error of ours says what to do.
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, PkmError | KeyboardInterrupt):
            return current
        current = current.__cause__ or current.__context__
    return error
