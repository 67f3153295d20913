"""How far a note is: accepted, processed or failed, from the receipt, the metadata store and the failures."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from core.settings import Settings
from producers.service.contract import Failed, NoteState
from producers.service.stored import Receipt
from sinks.iceberg_failures import FailureReader
from sinks.metadata_reader import NoteReader

__all__ = ["StateReader", "state_of"]

CLOCKS_DIFFER = timedelta(minutes=10)
"""Between our clock, which a receipt has, and the stream's, which the tables have."""

Row = Mapping[str, Any]


class StateReader:
    """Reads states; blocks, and is safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._notes = NoteReader(settings)
        self._failures = FailureReader(settings)

    def read(self, note_id: str, receipt: Receipt | None) -> NoteState | None:
        """Return a note's state, None for a note that nobody knows.

        The table of failures is only asked about a version that was accepted here and is not processed. Raises
        MissingError before `pkm init`, UnreachableError when S3 or the catalog do not answer.
        """
        record = self._notes.get(note_id)
        if receipt is None or _has_it(record, receipt):
            return state_of(receipt, record, None)
        failure = self._failures.find(
            receipt.event_id,
            arrived_from=receipt.accepted_at - CLOCKS_DIFFER,
            arrived_until=receipt.accepted_at + CLOCKS_DIFFER,
        )
        return state_of(receipt, record, failure)

    def close(self) -> None:
        """Let go of the store."""
        self._notes.close()


def state_of(receipt: Receipt | None, record: Row | None, failure: Row | None) -> NoteState | None:
    """Tell a note's state from what was accepted, what the metadata store has, and why the former failed.

    The store may be ahead of the receipt, when two versions were accepted at the same time or one came another way.
    """
    if record is not None and (receipt is None or _has_it(record, receipt)):
        return NoteState(
            note_id=record["note_id"],
            event_id=record["event_id"],
            state="processed",
            accepted_at=receipt.accepted_at if receipt and receipt.event_id == record["event_id"] else None,
            processed_at=_time(record["processed_at"]),
            title=record["title"],
        )
    if receipt is None:
        return None
    return NoteState(
        note_id=receipt.note_id,
        event_id=receipt.event_id,
        state="accepted" if failure is None else "failed",
        accepted_at=receipt.accepted_at,
        failure=None
        if failure is None
        else Failed(step=failure["step"], error=failure["error"], message=failure["message"]),
    )


def _has_it(record: Row | None, receipt: Receipt) -> bool:
    if record is None:
        return False
    if record["event_id"] == receipt.event_id:
        return True
    time = _time(record["timestamp"])
    return time is not None and time >= receipt.accepted_at


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
