"""Single things, many at once: on S3 and the stream when the caller hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

import obstore
import pytest

from announced import Refusing, records
from builders import NOW
from core import aws
from core.errors import MissingError, UnreachableError
from core.records import event_identity, note_identity
from core.settings import Settings
from producers import stream
from producers.items import Deletion, SourceItem, StoredObject, raw_key
from producers.publish import Published, Publisher


def note(number: int) -> SourceItem:
    return SourceItem("agents", f"note-{number}", f"Note {number}".encode(), metadata={"path": str(number)})


def test_when_the_caller_hears_of_it_object_and_record_are_there(settings: Settings, kinesis: Any) -> None:
    async def publish() -> Published:
        async with Publisher(settings) as publisher:
            published = await publisher.publish(note(1))
            assert [record["event_id"] for record in records(kinesis, settings)] == [published.event_id]
            return published

    published = asyncio.run(publish())
    assert published.note_id == note_identity("agents", "note-1")
    assert published.uploaded
    key = raw_key("agents", published.event_id)
    assert bytes(obstore.get(aws.object_store(settings), key).bytes()) == b"Note 1"
    assert asyncio.run(publish_again(settings)) == Published(published.note_id, published.event_id, uploaded=False)


async def publish_again(settings: Settings) -> Published:
    async with Publisher(settings) as publisher:
        return await publisher.publish(note(1))


def test_many_at_once_share_calls_and_each_hears_of_its_own(settings: Settings, kinesis: Any) -> None:
    client = Refusing(kinesis, iter([]))

    async def publish() -> list[Published]:
        async with Publisher(settings, client=client) as publisher:
            return await asyncio.gather(*(publisher.publish(note(number)) for number in range(60)))

    published = asyncio.run(publish())
    assert [one.note_id for one in published] == [note_identity("agents", f"note-{n}") for n in range(60)]
    assert len(records(kinesis, settings)) == 60
    assert len(client.calls) < 60


def test_an_object_stored_by_others_and_a_deletion_are_announced_too(settings: Settings, kinesis: Any) -> None:
    stored = StoredObject(
        source_type="uploads",
        identity="a",
        event_id=event_identity("uploads", "a", b"in parts"),
        s3_key="bronze/raw/uploads/a",
        content_size=8,
    )
    deletion = Deletion("uploads", "a", NOW)

    async def publish() -> list[Published]:
        async with Publisher(settings) as publisher:
            return [await publisher.publish(stored), await publisher.publish(deletion)]

    first, second = asyncio.run(publish())
    assert first.note_id == second.note_id
    assert (first.event_id, second.event_id) == (stored.event_id, deletion.event_id)
    assert [record.get("deleted", False) for record in records(kinesis, settings)] == [False, True]


def test_who_can_not_be_served_hears_why_and_the_next_one_is_served(settings: Settings, kinesis: Any) -> None:
    client = Refusing(kinesis, iter([{0}] * stream.ATTEMPTS))

    async def publish() -> Published:
        async with Publisher(settings, client=client) as publisher:
            with pytest.raises(UnreachableError, match="slow down"):
                await publisher.publish(note(1))
            return await publisher.publish(note(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "LONGEST_PAUSE_SECONDS", 0.0)
        assert asyncio.run(publish()).uploaded is False
    assert len(records(kinesis, settings)) == 1


def test_without_a_stream_nobody_waits_for_ever(settings: Settings) -> None:
    async def publish() -> list[Published | BaseException]:
        async with Publisher(settings) as publisher:
            return await asyncio.gather(*(publisher.publish(note(n)) for n in range(3)), return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(publish())] == [MissingError] * 3


def test_a_caller_that_leaves_does_not_keep_the_others_from_being_served(settings: Settings, kinesis: Any) -> None:
    async def publish() -> None:
        async with Publisher(settings) as publisher:
            leaving = asyncio.ensure_future(publisher.publish(note(1)))
            await publisher.publish(note(2))
            leaving.cancel()
            await publisher.publish(note(3))

    asyncio.run(publish())
    assert {record["metadata"]["path"] for record in records(kinesis, settings)} >= {"2", "3"}
