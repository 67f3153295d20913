"""A source partition that stops taking records when a step of the flow asks for it, and then ends the flow.

It waits for the end of the epoch first. So what was read before is committed, and nothing is taken that the
next start would have to repeat.
"""

from __future__ import annotations

from datetime import datetime
from typing import Generic, TypeVar

from bytewax.inputs import StatefulSourcePartition

from core import stopping
from core.first_error import noted, raise_beside
from core.halt import Halt

__all__ = ["HaltingPartition"]

# A source ends an epoch before the sinks do: after two more that are empty, theirs has ended too.
EPOCHS = 3

X = TypeVar("X")
S = TypeVar("S")


class HaltingPartition(StatefulSourcePartition[X, S], Generic[X, S]):
    """Gives what `partition` gives until `halt` is requested."""

    def __init__(self, partition: StatefulSourcePartition[X, S], halt: Halt) -> None:
        self._partition = partition
        self._halt = halt
        self._epochs_ended = 0

    def next_batch(self) -> list[X]:
        """Return the partition's items; none once the halt is requested.

        Raises the halt's error when the epoch in which it was requested has ended everywhere, and what has failed
        beside the stream.
        """
        error = self._halt.error
        with noted():
            raise_beside()
            if error is None or stopping.requested():
                return list(self._partition.next_batch())
            if self._epochs_ended >= EPOCHS:
                raise error
        return []

    def next_awake(self) -> datetime | None:
        """Return when the partition wants to be asked next."""
        return self._partition.next_awake()

    def snapshot(self) -> S:
        """Return the partition's state; called at the end of an epoch."""
        self._epochs_ended += self._halt.error is not None
        return self._partition.snapshot()

    def close(self) -> None:
        """Close the partition."""
        self._partition.close()
