"""Ends the epochs of a source partition when they are due, and keeps those of different workers in step.

Bytewax looks at the clock after it has asked a partition for items. Whatever is handed on when an epoch is over
already would still belong to it, and the commit wait for one batch more: with batches of models that is as long as
the epoch itself.

Bytewax measures a partition's epoch from when the partition closed its last one, but asks it for items only when all
workers have closed the epoch before. A partition that once closed an epoch while another worker was busy is from then
on asked once in each epoch of the other, at its beginning, and closes its own at once: one batch an epoch, for ever.
To let one epoch pass and be asked shortly before the end of the next brings the two back in step.

Steps that take an epoch for a batch look the same, and `sources.pace` lets them. So where one worker reads all
partitions nobody waits; with batches of ten seconds that cost up to a third of the time.
"""

from __future__ import annotations

__all__ = ["Phase"]

# One whole epoch of the other worker, and most of the next.
WAIT_EPOCHS = 1.9
LONGEST_PAUSE_EPOCHS = 64
# How long an engine may take to end an epoch that we think is over. Its epochs may also be longer than the settings
# say (`bytewax.run -s`): then it gets on after this time.
ENDING_SECONDS = 0.05


class Phase:
    """Watches how often a partition is asked within an epoch, and says when it should wait. Times are monotonic."""

    def __init__(self, epoch_seconds: float, now: float) -> None:
        self._epoch_seconds = epoch_seconds
        self._epoch_began = now
        self._length = epoch_seconds
        self._asked = 0
        self._handed_on = False
        self._over_since: float | None = None
        self._shift = False
        self._pause_epochs = 1
        self._starved_epochs = 0
        self.hold_until = now
        """When the partition should be asked next, if not later."""

    def asked(self, now: float) -> None:
        """Note that the partition was asked for items."""
        self._asked += 1
        if self._handed_on and self._over_since is None and now - self._epoch_began >= self._epoch_seconds:
            self._over_since = now
        if self._shift:
            self._shift = False
            self.hold_until = now + WAIT_EPOCHS * min(self._epoch_seconds, self._length)

    def handed_on(self, records: int) -> None:
        """Note that so many records were handed on."""
        self._handed_on = self._handed_on or records > 0

    def is_over(self, now: float) -> bool:
        """Whether the epoch has to end before more is handed on.

        Never before it has had something: a partition that is asked too late in each epoch still gets on.
        """
        return self._over_since is not None and now - self._over_since < ENDING_SECONDS

    def epoch_ended(self, now: float, *, backlog: bool) -> None:
        """Note the end of an epoch; `backlog` tells whether the partition had more to give."""
        self._length, self._epoch_began = now - self._epoch_began, now
        self._handed_on, self._over_since = False, None
        starved, self._asked = backlog and self._asked == 1, 0
        if not starved:
            self._pause_epochs, self._starved_epochs = 1, 0
            return
        self._starved_epochs += 1
        if self._starved_epochs > self._pause_epochs:
            # Steps that take longer than an epoch for one batch look the same, and then a wait only costs time: it is
            # tried ever more rarely.
            self._starved_epochs = 0
            self._pause_epochs = min(self._pause_epochs * 4, LONGEST_PAUSE_EPOCHS)
            self._shift = True
