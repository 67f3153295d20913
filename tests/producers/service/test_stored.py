"""Idempotency keys and receipts: one first, for all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from core import aws
from core.errors import MissingError, UnreachableError
from core.settings import Settings
from producers.service.stored import Key, Receipt, Stored

KEY = Key("digest", "note", "event", done=False)
RECEIPT = Receipt("note", "event", datetime(2026, 11, 23, tzinfo=UTC), "shardId-0", "42")


@pytest.fixture
def stored(settings: Settings) -> Iterator[Stored]:
    return Stored(aws.object_store(settings), settings)


def test_of_many_that_begin_with_one_key_all_get_the_first(stored: Stored) -> None:
    async def run() -> list[Key]:
        others = [replace(KEY, request_digest=str(number)) for number in range(20)]
        return await asyncio.gather(*(stored.begin("a", "key", other) for other in others))

    assert len({key.request_digest for key in asyncio.run(run())}) == 1


def test_a_key_is_done_once_and_only_for_its_owner(stored: Stored) -> None:
    async def run() -> list[Any]:
        begun = await stored.begin("a", "key", KEY)
        await stored.finish("a", "key", begun)
        await stored.finish("a", "key", begun)
        return [begun.done, await stored.key("a", "key"), await stored.key("b", "key"), await stored.key("a", "k")]

    begun, done, *others = asyncio.run(run())
    assert not begun
    assert done.done
    assert (done.request_digest, done.note_id, done.event_id) == ("digest", "note", "event")
    assert others == [None, None]


def test_the_newest_receipt_is_kept(stored: Stored) -> None:
    async def run() -> list[Receipt | None]:
        await stored.keep(RECEIPT)
        await stored.keep(replace(RECEIPT, event_id="newer"))
        return [await stored.receipt("note"), await stored.receipt("other")]

    assert asyncio.run(run()) == [replace(RECEIPT, event_id="newer"), None]


def test_faults_are_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = settings.model_copy(update={"bucket": "no-such-bucket"})
    with pytest.raises(MissingError, match="no-such-bucket"):
        asyncio.run(Stored(aws.object_store(nowhere), nowhere).keep(RECEIPT))
    with pytest.raises(MissingError, match="no-such-bucket"):
        asyncio.run(Stored(aws.object_store(nowhere), nowhere).receipt("note"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    hasty = settings.model_copy(update={"retry_seconds": 0.1})
    with pytest.raises(UnreachableError, match=r"receipts/note\.json can't be used"):
        asyncio.run(Stored(aws.object_store(hasty), hasty).receipt("note"))
