"""Keeps the epochs of source partitions on different workers in step.

Bytewax measures a partition's epoch from when the partition closed its last one, but asks it for items only when all
workers have closed the epoch before. A partition that once closed an epoch while another worker was busy is from then
on asked once in each epoch of the other, and closes its own at once: one batch an epoch, for ever. To be asked
a little before the other's epoch ends brings the two back in step.
"""

from __future__ import annotations

__all__ = ["Phase"]

# How much of an epoch to let pass: most, but less than the other worker takes to close its own.
SHIFT = 0.9
LONGEST_PAUSE_EPOCHS = 64


class Phase:
    """Watches how often a partition is asked within an epoch, and says when it should wait. Times are monotonic."""

    def __init__(self, epoch_seconds: float, now: float) -> None:
        self._epoch_seconds = epoch_seconds
        self._epoch_began = now
        self._asked = 0
        self._pause_epochs = 1
        self._paused_epochs = 0
        self.hold_until = now
        """When the partition should be asked next, if not later."""

    def asked(self) -> None:
        """Note that the partition was asked for items."""
        self._asked += 1

    def epoch_ended(self, now: float, *, backlog: bool) -> None:
        """Note the end of an epoch; `backlog` tells whether the partition had more to give."""
        length, self._epoch_began = now - self._epoch_began, now
        starved, self._asked = backlog and self._asked == 1, 0
        if not starved:
            self._pause_epochs, self._paused_epochs = 1, 0
            return
        self._paused_epochs += 1
        if self._paused_epochs >= self._pause_epochs:
            # Steps that take longer than an epoch for one batch look the same, and then a wait only costs time: it is
            # tried ever more rarely.
            self._paused_epochs = 0
            self._pause_epochs = min(self._pause_epochs * 4, LONGEST_PAUSE_EPOCHS)
            self.hold_until = now + SHIFT * min(self._epoch_seconds, length)
