"""A sink partition around another that is not closed once the flow has failed.

Closing then would wait for a service that is down, and raise a second error, on which the engine aborts. Nothing is
lost: what was not committed is in the recovery state, or comes again from the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from bytewax.outputs import StatefulSinkPartition

from core.deferred import wrapped
from core.first_error import begin, first_error, noted

__all__ = ["CarefulPartition"]

X = TypeVar("X")
S = TypeVar("S")


class CarefulPartition(StatefulSinkPartition[X, S], Generic[X, S]):
    """Does what `partition` does."""

    def __init__(self, partition: StatefulSinkPartition[X, S]) -> None:
        self._partition = partition
        begin()

    def write_batch(self, values: list[X]) -> None:
        """Write items."""
        with noted():
            self._partition.write_batch(values)

    def snapshot(self) -> S:
        """Return the partition's state at the end of an epoch."""
        with noted():
            return wrapped(self._partition.snapshot(), _noting)

    def close(self) -> None:
        """Close the partition, unless the flow has failed."""
        if first_error() is None:
            with noted():
                self._partition.close()


def _noting(result: Callable[[], S]) -> S:
    with noted():
        return result()
