"""How many requests one name may make: token buckets in the memory of this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from producers.service.problems import TOO_MANY_REQUESTS, ProblemError

__all__ = ["Bucket", "Rates"]


@dataclass(slots=True)
class Bucket:
    """Holds up to `burst` requests and gets `per_second` of them back each second; full at first."""

    per_second: float
    burst: int
    level: float
    at: float

    def take(self, now: float) -> float:
        """Take one request out and return 0, or return in how many seconds there will be one."""
        self.level = min(float(self.burst), self.level + (now - self.at) * self.per_second)
        self.at = now
        if self.level < 1:
            return (1 - self.level) / self.per_second
        self.level -= 1
        return 0.0


@dataclass(slots=True)
class Rates:
    """A bucket for each name; there are as many names as tokens, so they are few."""

    per_second: float
    burst: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def take(self, name: str) -> None:
        """Count a request of `name`; raises ProblemError (429) when it has made too many."""
        now = self.clock()
        bucket = self._buckets.setdefault(name, Bucket(self.per_second, self.burst, float(self.burst), now))
        seconds = bucket.take(now)
        if seconds > 0:
            raise ProblemError(
                TOO_MANY_REQUESTS,
                f"{self.burst} requests at once, then {self.per_second:g} a second",
                retry_after_seconds=seconds,
            )
