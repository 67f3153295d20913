"""Reads the objects of events from S3, many at a time, and refuses those that must not be read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import bytewax.operators as op
from bytewax.dataflow import Stream, operator
from obstore.store import ObjectStore

from core import aws, layout
from core.first_error import noted
from core.records import Event, Failure, FetchedEvent, RawRecord
from core.settings import Settings
from operators.fetcher import Fetcher
from operators.outcomes import History, read_as_before
from operators.parse import parse_record

__all__ = ["FetchOut", "Objects", "content"]


@dataclass(frozen=True)
class FetchOut:
    """The two streams that leave `content`."""

    fetched: Stream[FetchedEvent]
    failures: Stream[Failure]


class Objects:
    """The objects that events name, as the workers of a process read them: all through one `Fetcher`.

    Up to `settings.fetch_concurrency` requests are in flight.
    """

    def __init__(
        self, settings: Settings, *, open_store: Callable[[Settings], ObjectStore] = aws.object_store
    ) -> None:
        """Touches no network yet."""
        self._settings = settings
        self._open_store = open_store
        self._opening = threading.Lock()
        self._fetcher: Fetcher | None = None

    def fetch(self, events: list[Event]) -> list[FetchedEvent | Failure]:
        """Read the objects of events; see `Fetcher.fetch`."""
        return self._opened().fetch(events)

    def ahead(self, records: Sequence[RawRecord]) -> None:
        """Begin to read the objects that records name which come next."""
        now, bucket = datetime.now(UTC), self._settings.bucket
        outcomes = (parse_record(record, bucket=bucket, now=now) for record in records)
        self._opened().ahead(outcome for outcome in outcomes if isinstance(outcome, Event))

    def _opened(self) -> Fetcher:
        with self._opening:
            if self._fetcher is None:
                self._fetcher = Fetcher(
                    self._open_store(self._settings),
                    bucket=self._settings.bucket,
                    max_object_bytes=self._settings.max_object_bytes,
                    concurrency=self._settings.fetch_concurrency,
                    own_prefixes=layout.own_prefixes(self._settings),
                )
            return self._fetcher


@operator
def content(
    step_id: str,  # noqa: ARG001 - the engine reads it
    events: Stream[Event],
    *,
    objects: Objects,
    open_history: Callable[[], History] | None = None,
) -> FetchOut:
    """Read every event's object; order is kept, and each event leaves as one fetched event or one failure.

    With `open_history`, what comes again after a restart ends as before (`operators.outcomes`).

    A deletion has no object and passes with no bytes. Stateless. Workers of a process share `objects`; faults are
    retried with jittered back-off.

    Raises UnreachableError when S3 does not answer after all retries or refuses us, MissingError when the bucket does
    not exist.
    """
    # Workers of one process are threads that share this function. Not threading.local: the engine's threads get a new
    # Python thread state, and so lose their locals, with every call.
    histories: dict[int, History] = {}

    def fetch_batch(batch: list[Event]) -> list[FetchedEvent | Failure]:
        if open_history is None:
            return objects.fetch(batch)
        worker = threading.get_ident()
        with noted():
            if worker not in histories:
                histories[worker] = open_history()
            return read_as_before(batch, histories[worker], objects.fetch)

    outcomes = op.flat_map_batch("fetch", events, fetch_batch)
    split = op.branch("split", outcomes, lambda outcome: isinstance(outcome, FetchedEvent))
    return FetchOut(cast("Stream[FetchedEvent]", split.trues), cast("Stream[Failure]", split.falses))
