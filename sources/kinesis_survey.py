"""Keeps a partition's knowledge of its stream fresh: which shards there are, and how long it keeps records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from core.errors import UnreachableError
from sources.kinesis_calls import Call, Calls
from sources.kinesis_client import Listing, StreamReader, TransientError, UnansweredError
from sources.kinesis_shards import backoff_seconds

__all__ = ["Survey"]

# Shards come from shards that end, which is noticed at once; this is for those of other partitions, and for the
# watermark, which can't pass the last listing.
LIST_SECONDS = 20.0
# Calls in a row that nothing answers before the first answer, so that a wrong endpoint is told at once.
FIRST_ATTEMPTS = 5


class Survey:
    """Lists the stream every 20 seconds, and when asked to. Times are monotonic."""

    def __init__(
        self,
        reader: StreamReader,
        calls: Calls,
        *,
        patience_seconds: float,
        now: float,
        uniform: Callable[[], float],
    ) -> None:
        """Faults are borne for `patience_seconds`."""
        self.listing: Listing | None = None
        self.due = now
        """When the next listing is to begin; while one is under way, when it began."""
        self._listed_at = now
        self._reader = reader
        self._calls = calls
        self._patience_seconds = patience_seconds
        self._uniform = uniform
        self._call: Call[Listing] | None = None
        self._again = False
        self._answered = False
        self._faults = 0
        self._faulty_since = now

    @property
    def under_way(self) -> bool:
        """Whether a listing is under way."""
        return self._call is not None

    def is_fresh(self, now: float) -> bool:
        """Tell whether there is a listing, and none is due or under way."""
        return self.listing is not None and self._call is None and now < self.due

    def soon(self, now: float) -> None:
        """Have the stream listed now; a listing that is under way may have begun too early."""
        if self._call is None:
            self.due = min(self.due, now)
        else:
            self._again = True

    def start(self, now: float) -> None:
        """Begin a listing if one is due."""
        if self._call is None and now >= self.due:
            self.due = now
            self._again = False
            self._call = self._calls.submit(self._reader.list_shards)

    def collect(self, now: float) -> bool:
        """Take the result of a listing that is done, and tell whether there is a new one.

        Raises UnreachableError when faults outlast the patience, and what `StreamReader.list_shards` raises.
        """
        if self._call is None or not self._call.done:
            return False
        call, self._call = self._call, None
        try:
            self.listing = call.result()
        except TransientError as error:
            self._wait_after(error, now)
            return False
        self._answered = True
        self._faults = 0
        self._listed_at = now
        self.due = now if self._again else now + LIST_SECONDS
        return True

    def horizon(self, now: float) -> datetime | None:
        """Return the oldest time that the stream keeps, as far as is known."""
        if self.listing is None:
            return None
        return self.listing.time + timedelta(seconds=now - self._listed_at) - self.listing.retention

    def _wait_after(self, error: TransientError, now: float) -> None:
        if self._faults == 0:
            self._faulty_since = now
        self._faults += 1
        self._answered |= not isinstance(error, UnansweredError)
        hopeless = self._faults >= FIRST_ATTEMPTS and not self._answered
        if hopeless or now - self._faulty_since >= self._patience_seconds:
            raise UnreachableError(f"{error} ({self._faults} attempts)") from error
        self.due = now + backoff_seconds(self._faults, self._uniform())
