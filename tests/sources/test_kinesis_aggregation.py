"""Aggregated records: what Amazon's own module packs is unpacked, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aggregates import aggregate_of
from sources.kinesis_aggregation import MAGIC, MAX_HASH_KEY, hash_key, unpack

keys = st.text(min_size=1, max_size=20)
user_records = st.lists(
    st.tuples(keys, st.none() | st.integers(0, MAX_HASH_KEY), st.binary(max_size=300)), min_size=1, max_size=20
)


def sealed(message: bytes) -> bytes:
    return MAGIC + message + hashlib.md5(message).digest()


@given(user_records)
def test_what_the_producer_packed_is_unpacked_in_order(packed: list[tuple[str, int | None, bytes]]) -> None:
    aggregate = unpack(aggregate_of(packed))
    assert aggregate is not None
    assert len(aggregate) == len(packed)
    assert [(one.partition_key, one.explicit_hash_key, one.data) for one in aggregate] == packed


@given(user_records, st.data())
def test_one_wrong_byte_makes_it_somebodys_data(
    packed: list[tuple[str, int | None, bytes]], data: st.DataObject
) -> None:
    record = bytearray(aggregate_of(packed))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    assert unpack(bytes(record)) is None


@given(user_records, st.data())
def test_a_part_of_an_aggregate_is_no_aggregate(
    packed: list[tuple[str, int | None, bytes]], data: st.DataObject
) -> None:
    record = aggregate_of(packed)
    assert unpack(record[: data.draw(st.integers(0, len(record) - 1))]) is None


@given(st.binary(max_size=200))
@example(b"")
@example(bytes([0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]))
def test_any_bytes_under_a_right_digest_are_read_or_refused_but_never_break(message: bytes) -> None:
    aggregate = unpack(sealed(message))
    assert aggregate is None or all(isinstance(one.data, bytes) for one in aggregate)


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


KEY = field(1, b"key")
RECORD = field(3, b"\x08\x00" + field(3, b"data"))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        KEY,
        RECORD,
        KEY + field(3, b"\x08\x01" + field(3, b"data")),
        KEY + field(3, b"\x08\x00"),
        KEY + field(3, field(3, b"data")),
        KEY + field(3, b"\x08\x00\x10\x00" + field(3, b"data")),
        KEY + field(2, b"-1") + RECORD,
        KEY + field(2, b"1" * 40) + RECORD,
        KEY + field(2, str(MAX_HASH_KEY + 1).encode()) + RECORD,
        field(1, b"\xff\xfe") + RECORD,
        b"\x08\x05" + RECORD,
        KEY + RECORD + b"\x1a\x7f",
        KEY + RECORD + b"\x00\x00",
        KEY + RECORD + b"\x1b",
    ],
    ids=[
        "nothing",
        "no records",
        "no keys",
        "key that is not there",
        "no data",
        "no key index",
        "hash key that is not there",
        "negative hash key",
        "hash key of 40 digits",
        "hash key of 129 bits",
        "key that is not UTF-8",
        "key of a wrong type",
        "longer than it is",
        "field 0",
        "group",
    ],
)
def test_a_message_that_can_not_be_right_is_no_aggregate(message: bytes) -> None:
    assert unpack(sealed(KEY + RECORD)) is not None
    assert unpack(sealed(message)) is None


def test_fields_that_are_not_known_yet_are_passed_over() -> None:
    later = field(9, b"new") + bytes([10 << 3 | 1]) + bytes(8) + bytes([11 << 3 | 5]) + bytes(4) + bytes([12 << 3, 7])
    aggregate = unpack(sealed(later + KEY + later + RECORD + later))
    assert aggregate is not None
    assert [one.data for one in aggregate] == [b"data"]


def test_an_aggregate_belongs_to_the_shard_that_all_its_records_belong_to() -> None:
    low = next(f"key {number}" for number in range(100) if hash_key(f"key {number}") < 2**127)
    high = next(f"key {number}" for number in range(100) if hash_key(f"key {number}") >= 2**127)
    lower, upper = (0, 2**127 - 1), (2**127, MAX_HASH_KEY)
    for packed, in_lower, in_upper in (
        ([(low, None, b"")], True, False),
        ([(high, None, b"")], False, True),
        ([(low, None, b""), (high, None, b"")], False, False),
        ([(high, 5, b"")], True, False),
        ([(high, 5, b""), (low, None, b"")], True, False),
        ([(high, 5, b""), (high, None, b"")], False, False),
    ):
        aggregate = unpack(aggregate_of(packed))
        assert aggregate is not None
        assert (aggregate.belongs_to(lower), aggregate.belongs_to(upper)) == (in_lower, in_upper)
        assert aggregate.belongs_to((0, MAX_HASH_KEY))


def test_a_record_that_holds_many_tiny_ones_is_not_blown_up_at_once() -> None:
    tiny = field(3, b"\x08\x00\x1a\x00")
    aggregate = unpack(sealed(KEY + tiny * (100_000 // len(tiny))))
    assert aggregate is not None
    assert len(aggregate) == 100_000 // len(tiny)
    assert next(iter(aggregate)).data == b""


def test_random_records_of_all_sizes() -> None:
    chance = random.Random(7)
    for size in (1, 2, 127, 128, 129, 16_383, 16_384, 16_385, 500_000):
        data = chance.randbytes(size)
        aggregate = unpack(aggregate_of([("key", None, data)]))
        assert aggregate is not None
        assert [one.data for one in aggregate] == [data]
