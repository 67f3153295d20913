"""Tells whether a snapshot fits the flow that wants to go on from it, and names the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
from bytewax.dataflow import Dataflow, Operator

from core.errors import SnapshotError

__all__ = ["UNKNOWN", "FlowShape", "changed_steps", "refuse_misfit", "shape_of"]

# The engine's own steps that keep state or a position; all others are made of these and of stateless ones.
STATEFUL = frozenset({"input", "output", "stateful_batch"})
STEPS_NAMED = 6

_log = structlog.get_logger(module=__name__)


@dataclass(frozen=True, slots=True)
class FlowShape:
    """What recovery state belongs to: the ids of the steps that have some, and the number of source partitions.

    Without steps, or with 0 partitions, it is not known, and nothing is compared.
    """

    steps: tuple[str, ...] = ()
    source_partitions: int = 0


UNKNOWN = FlowShape()


def shape_of(graph: Dataflow, *, source_partitions: int) -> FlowShape:
    """Return the shape of a flow that was built."""
    return FlowShape(tuple(sorted(_stateful(graph.substeps))), source_partitions)


def changed_steps(snapshot: FlowShape, flow: FlowShape) -> str | None:
    """Say which steps of the snapshot the flow lacks and the other way round; None when they are the same."""
    if not snapshot.steps or not flow.steps or snapshot.steps == flow.steps:
        return None
    lacking = sorted(set(snapshot.steps) - set(flow.steps))
    added = sorted(set(flow.steps) - set(snapshot.steps))
    parts = [
        f"{what} {_few(steps)}" for what, steps in (("the snapshot has", lacking), ("this flow has", added)) if steps
    ]
    return ", ".join(parts)


def refuse_misfit(snapshot: FlowShape, flow: FlowShape, *, uri: str, accepted: bool) -> None:
    """Raise SnapshotError when the snapshot at `uri` does not fit the flow.

    Other steps are only logged when they were `accepted`; with another number of source partitions the engine could
    not go on at all.
    """
    partitions = snapshot.source_partitions
    if partitions and flow.source_partitions and partitions != flow.source_partitions:
        raise SnapshotError(
            f"{uri} shares the shards among {partitions} source partitions, not {flow.source_partitions}: "
            f"set PKM_SOURCE_PARTITIONS={partitions}"
        )
    difference = changed_steps(snapshot, flow)
    if difference and accepted:
        _log.warning("the snapshot is of a flow with other steps", difference=difference, uri=uri)
    elif difference:
        raise SnapshotError(
            f"{uri} is of a flow with other steps ({difference}): run the release that wrote it; or lose the state "
            f"of its steps and start new ones empty, with PKM_ACCEPT_CHANGED_STEPS=1 or `pkm snapshots restore ID "
            f"--force`"
        )


def _few(steps: list[str]) -> str:
    named = ", ".join(f'"{step}"' for step in steps[:STEPS_NAMED])
    return named if len(steps) <= STEPS_NAMED else f"{named} and {len(steps) - STEPS_NAMED} more"


def _stateful(steps: Sequence[Operator]) -> Iterator[str]:
    for step in steps:
        if step.substeps:
            yield from _stateful(step.substeps)
        elif type(step).__name__ in STATEFUL:
            yield step.step_id
