"""States: what the receipt, the store and the failures say together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from producers.service.states import state_of
from producers.service.stored import Receipt

AT = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
RECEIPT = Receipt("note", "event-2", AT, "shardId-000000000000", "7")
FAILURE = {"step": "extract", "error": "UnsupportedFormat", "message": "binary", "failed_at": AT}


def record(event_id: str, *, minutes: int = 0) -> dict[str, Any]:
    time = (AT + timedelta(minutes=minutes)).isoformat()
    return {"note_id": "note", "event_id": event_id, "timestamp": time, "processed_at": time, "title": "Title"}


@pytest.mark.parametrize(
    ("receipt", "stored", "failure", "expected"),
    [
        (None, None, None, None),
        (None, record("event-1"), None, ("processed", "event-1")),
        (RECEIPT, None, None, ("accepted", "event-2")),
        (RECEIPT, None, FAILURE, ("failed", "event-2")),
        (RECEIPT, record("event-1", minutes=-5), None, ("accepted", "event-2")),
        (RECEIPT, record("event-1", minutes=-5), FAILURE, ("failed", "event-2")),
        (RECEIPT, record("event-2", minutes=-5), None, ("processed", "event-2")),
        (RECEIPT, record("event-2"), FAILURE, ("processed", "event-2")),
        (RECEIPT, record("event-3", minutes=5), FAILURE, ("processed", "event-3")),
    ],
)
def test_the_newest_version_that_is_known_decides(
    receipt: Receipt | None,
    stored: dict[str, Any] | None,
    failure: dict[str, Any] | None,
    expected: tuple[str, str] | None,
) -> None:
    state = state_of(receipt, stored, failure)
    assert (None if state is None else (state.state, state.event_id)) == expected


def test_a_failure_says_why() -> None:
    state = state_of(RECEIPT, None, FAILURE)
    assert state is not None
    assert state.failure is not None
    assert (state.failure.step, state.failure.error) == ("extract", "UnsupportedFormat")
    assert state.accepted_at == AT


def test_a_receipt_survives_its_object() -> None:
    assert Receipt.from_json(RECEIPT.to_json()) == RECEIPT
