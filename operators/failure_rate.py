"""Stops the flow when too many of the last records failed, rather than drain a stream into the dead letters.

A wrong bucket, a lost permission or a new format of a producer makes every record fail. Dead letters are for
single records; when most fail, somebody has to look first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import bytewax.operators as op
from bytewax.dataflow import Stream, operator
from bytewax.operators import StatefulBatchLogic

from core.errors import FailureRateError
from core.halt import Halt
from core.records import Document, Failure, Watermark

__all__ = ["FailureRate", "Outcomes", "guard"]

STATE_VERSION = 1
# After a stop, this part of the window decides whether the cause is gone.
PROBATION_SHARE = 10
LEAST_PROBATION = 10

Label = tuple[str, str]
"""Step and error of a failure."""

_Snapshot = tuple[int, tuple[Label, ...], tuple[int, ...]]
"""Version, the labels, and each outcome, oldest first: 0 for a success, else the place of its label, from 1."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the records of one micro-batch ended; `example` describes one of the failed ones."""

    documents: int
    failures: tuple[tuple[Label, int], ...] = ()
    example: str = ""


@dataclass(slots=True)
class FailureRate:
    """The outcomes of the last `window` records, and whether more than `limit` of them (a share) failed.

    While fewer than `window` are known nothing is exceeded, so that a few bad records at the start stop no flow.
    """

    limit: float
    window: int
    outcomes: deque[Label | None] = field(default_factory=deque)
    failed: Counter[Label] = field(default_factory=Counter)

    def observe(self, outcomes: Outcomes) -> None:
        """Count a micro-batch; the order within one does not matter."""
        for label, count in outcomes.failures:
            for _ in range(count):
                self._add(label)
        for _ in range(outcomes.documents):
            self._add(None)

    @property
    def share(self) -> float:
        """The part of the known outcomes that failed."""
        return self.failed.total() / len(self.outcomes) if self.outcomes else 0.0

    @property
    def exceeded(self) -> bool:
        """Whether the window is full and too many of it failed."""
        return len(self.outcomes) >= self.window and self.share > self.limit

    def to_snapshot(self) -> _Snapshot:
        """Return plain values that never change afterwards."""
        labels = tuple(sorted(self.failed))
        places = {label: place for place, label in enumerate(labels, start=1)}
        return STATE_VERSION, labels, tuple(0 if label is None else places[label] for label in self.outcomes)

    def restore(self, snapshot: _Snapshot) -> None:
        """Take up what `to_snapshot` returned; of a longer window the newest outcomes."""
        _, labels, outcomes = snapshot
        for place in outcomes:
            self._add(labels[place - 1] if place else None)

    def _add(self, label: Label | None) -> None:
        self.outcomes.append(label)
        if label is not None:
            self.failed[label] += 1
        if len(self.outcomes) > self.window:
            oldest = self.outcomes.popleft()
            if oldest is not None:
                self.failed[oldest] -= 1
                self.failed += Counter()  # drops the labels that nothing has any more


class _Guard(StatefulBatchLogic[Outcomes | Watermark, None, _Snapshot]):
    """Trips when the rate is exceeded, and raises in the next epoch, when the failures are committed.

    A start that finds the rate exceeded in its snapshot is on probation: a part of the window decides anew. When it
    fails too, the flow stops at once and nothing of its epoch is committed, so that restarts move nothing into the
    dead letters.
    """

    def __init__(self, limit: float, window: int, halt: Halt, snapshot: _Snapshot | None) -> None:
        self._halt = halt
        self._rate = FailureRate(limit, window)
        if snapshot is not None:
            self._rate.restore(snapshot)
        self._probation = (
            FailureRate(limit, min(window, max(window // PROBATION_SHARE, LEAST_PROBATION)))
            if self._rate.exceeded
            else None
        )
        self._example = ""
        self._tripped = False
        self._epoch_ended = False

    def on_batch(self, values: list[Outcomes | Watermark]) -> tuple[Iterable[None], bool]:
        if self._tripped and self._epoch_ended:
            # Sources stop by themselves; this is for a process that has none.
            raise self._error(self._rate)
        for value in values:
            if isinstance(value, Outcomes):
                self._observe(value)
        return (), StatefulBatchLogic.RETAIN

    def _observe(self, outcomes: Outcomes) -> None:
        self._example = outcomes.example or self._example
        if self._probation is not None:
            self._probation.observe(outcomes)
            if self._probation.exceeded:
                raise self._error(self._probation)
            if len(self._probation.outcomes) >= self._probation.window:
                self._rate = FailureRate(self._rate.limit, self._rate.window)
                self._rate.restore(self._probation.to_snapshot())
                self._probation = None
            return
        if self._tripped:
            return
        self._rate.observe(outcomes)
        if self._rate.exceeded:
            self._tripped = True
            self._halt.request(self._error(self._rate))

    def snapshot(self) -> _Snapshot:
        self._epoch_ended = self._tripped
        return self._rate.to_snapshot()

    def _error(self, rate: FailureRate) -> FailureRateError:
        ((step, error), count) = rate.failed.most_common(1)[0]
        return FailureRateError(
            f"{rate.share:.0%} of the last {len(rate.outcomes)} records failed, more than {rate.limit:.0%}: mostly in"
            f" step {step} with {error} ({count}), the last one {self._example}; nothing is lost: look at"
            " `pkm dlq ls`, repair the cause, start again, then `pkm dlq redrive`; if these records are to be dead"
            " letters, raise PKM_FAILURE_RATE_LIMIT (1 never stops)"
        )


@operator
def guard(
    step_id: str,  # noqa: ARG001 - the decorator reads it
    documents: Stream[Document],
    failures: Stream[Failure],
    watermarks: Stream[Watermark],
    *,
    limit: float,
    window: int,
    halt: Halt,
) -> None:
    """Watch how records end, and stop the flow when more than `limit` (a share) of the last `window` failed.

    A document of a closed window is stored, so its failure does not count. Duplicates do not count
    either.

    Only counts travel to the one key, hence one worker. Its state is the window. When the rate is exceeded, `halt`
    is requested: what was read is committed, then the flow ends with FailureRateError. The next start goes on
    behind it; it is on probation, see `_Guard`. `watermarks` only make sure that something arrives in each epoch.
    """
    good = op.flat_map_batch("documents", documents, _good)
    bad = op.flat_map_batch("failures", failures, _bad)
    merged = op.merge("merge", good, bad, watermarks)
    keyed = op.key_on("key", merged, _the_key)
    op.stateful_batch("rate", keyed, partial(_Guard, limit, window, halt))


def _good(documents: Sequence[Document]) -> list[Outcomes]:
    return [Outcomes(len(documents))]


def _bad(failures: Sequence[Failure]) -> list[Outcomes]:
    counted = [failure for failure in failures if failure.step != "windows"]
    if not counted:
        return []
    last = counted[-1]
    labels = Counter((failure.step, failure.error) for failure in counted)
    where = f"{last.position.shard_id}:{last.position.sequence_number}"
    return [Outcomes(0, tuple(labels.items()), f"{where} ({last.message})")]


def _the_key(_: Outcomes | Watermark) -> str:
    return "all"
