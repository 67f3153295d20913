"""What is said and counted when the stream no longer holds records that were not read."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import structlog
from prometheus_client import Counter

from core.errors import MissingError

__all__ = ["DATA_LOSSES", "LOST_SECONDS", "Loss", "count_loss", "loss_error"]

Loss = Literal["trimmed", "vanished", "recreated"]
"""The retention period removed records, or a whole shard; or the stream was deleted and made anew."""

DATA_LOSSES = Counter("pkm_data_losses", "Places where records of the stream were skipped", ["kind"])
LOST_SECONDS = Counter("pkm_data_loss_seconds", "How much of the stream was skipped, in time", ["kind"])

_log = structlog.get_logger(module=__name__)


def loss_error(message: str) -> MissingError:
    """Return the error that stops the flow, with what can be done."""
    return MissingError(f"{message}: start with PKM_START=trim-horizon and no snapshot, or set PKM_ON_DATA_LOSS=warn")


def count_loss(kind: Loss, message: str, *, span: timedelta | None = None) -> None:
    """Count and log a loss that the flow goes on after; `span` is the time that is missing, as far as is known."""
    seconds = max(span.total_seconds(), 0.0) if span else 0.0
    DATA_LOSSES.labels(kind).inc()
    LOST_SECONDS.labels(kind).inc(seconds)
    _log.warning("records of the stream are lost", kind=kind, seconds=round(seconds), reason=message)
