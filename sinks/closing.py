"""How a flow's sink partitions end: side by side after a flow that ends well, and not at all after one that failed.

The engine closes one partition after the other, and a store far away takes seconds to take the last epoch. So each
only begins its end when it is asked to close, and the last of the process waits for all.

Closing a partition of a flow that failed would wait for a service that is down, and raise a second error, on which
the engine aborts. Nothing is lost: what was not committed is in the recovery state, or comes again from the stream.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from bytewax.outputs import StatefulSinkPartition

from core.deferred import wrapped
from core.first_error import begin, first_error, noted

__all__ = ["CarefulPartition", "ClosablePartition"]

X = TypeVar("X")
S = TypeVar("S")


class ClosablePartition(StatefulSinkPartition[X, S], Generic[X, S]):
    """A partition whose end may go on beside that of others, between `begin_close` and `close`."""

    def begin_close(self) -> None:
        """Begin what `close` waits for; nothing is written to the partition any more."""


class CarefulPartition(StatefulSinkPartition[X, S], Generic[X, S]):
    """Does what `partition` does; `close` of the last one in this process waits for all of them."""

    def __init__(self, partition: ClosablePartition[X, S]) -> None:
        self._partition = partition
        _ends.opened(self)

    def write_batch(self, values: list[X]) -> None:
        """Write items."""
        with noted():
            self._partition.write_batch(values)

    def snapshot(self) -> S:
        """Return the partition's state at the end of an epoch."""
        with noted():
            return wrapped(self._partition.snapshot(), _noting)

    def close(self) -> None:
        """Begin to close the partition, unless the flow has failed; waits only when no other one is open any more.

        The last one raises what closing any of them failed with.
        """
        with ExitStack() as ends:
            # Whatever one of them raises, the others are closed.
            ends.callback(self._end_all)
            if first_error() is None:
                with noted():
                    self._partition.begin_close()

    def _end_all(self) -> None:
        with ExitStack() as ends:
            for partition in reversed(_ends.closing(self, self._partition)):
                ends.callback(_close, partition)


class _Ends:
    """Which partitions of the flow in this process are open, and which wait for their end."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        # Weak: a flow that is interrupted drops its partitions without closing them.
        self._open: weakref.WeakSet[CarefulPartition[Any, Any]] = weakref.WeakSet()
        self._begun: list[ClosablePartition[Any, Any]] = []

    def opened(self, partition: CarefulPartition[Any, Any]) -> None:
        with self._changing:
            if not self._open:
                self._begun.clear()
                # Not for each: a partition is built when its first item comes, and the flow may have failed by then.
                begin()
            self._open.add(partition)

    def closing(
        self, partition: CarefulPartition[Any, Any], inner: ClosablePartition[Any, Any]
    ) -> list[ClosablePartition[Any, Any]]:
        """Note that a partition has begun its end; returns all that have if it was the last one, else none."""
        with self._changing:
            self._open.discard(partition)
            self._begun.append(inner)
            if self._open:
                return []
            begun, self._begun = self._begun, []
            return begun


_ends = _Ends()


def _close(partition: ClosablePartition[Any, Any]) -> None:
    if first_error() is None:
        with noted():
            partition.close()


def _noting(result: Callable[[], S]) -> S:
    with noted():
        return result()
