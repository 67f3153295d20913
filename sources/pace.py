"""How many records a source partition hands on at a time: no more than the steps behind it take in about an epoch.

An epoch ends only when all of its records have passed all steps, and nothing ends it within a batch. So a batch that
takes minutes, as models may for twenty long documents, would make an epoch of minutes. How slow the steps are is not
known at a start: the first batch is a single record, or the first commit after a crash would wait for a whole one;
then the size doubles until a batch was slow.

From then on a batch is to take a bit more than an epoch: one that takes a bit less makes the epoch as long as two, of
smaller batches, which models work on less well.
"""

from __future__ import annotations

__all__ = ["Pace"]

# A partition that waits for another worker's epoch is asked about one epoch later, whatever the size of its batch.
SLOW_EPOCHS = 1.5
FAST_EPOCHS = 1.0
AIM_EPOCHS = 1.25


class Pace:
    """Sizes the next batch by how long the last one took. Times are monotonic seconds."""

    def __init__(self, most_records: int, epoch_seconds: float) -> None:
        self._most_records = most_records
        self._epoch_seconds = epoch_seconds
        self._handed_on: tuple[int, float] | None = None
        self._growing = True
        self._opened = False
        self.records = 1
        """The most that should be handed on now; at least 1."""

    def handed_on(self, records: int, now: float) -> None:
        """Note that so many records were handed on."""
        if records:
            self._handed_on = (records, now)

    def asked(self, now: float) -> None:
        """Note that the partition is asked for more: the steps behind it are done with what they were given."""
        if self._handed_on is None:
            return
        (records, since), self._handed_on = self._handed_on, None
        epochs = (now - since) / self._epoch_seconds
        # The first batch says nothing of the next: it also waited until models and stores were open.
        if epochs > SLOW_EPOCHS and self._opened:
            self._growing = False
            self.records = max(int(records * AIM_EPOCHS / epochs), 1)
        elif self._growing:
            self.records = min(self.records * 2, self._most_records)
        elif epochs < FAST_EPOCHS:
            # A batch may have been small only because no more records were there.
            aim = max(int(records * AIM_EPOCHS / epochs), self.records) if epochs > 0 else self._most_records
            self.records = min(aim, self.records * 2, self._most_records)
        self._opened = True
