"""Unpacks records that the Kinesis Producer Library has aggregated: many user records in one record of the stream.

Format: 4 magic bytes, a protobuf message AggregatedRecord, and the MD5 of that message (16 bytes). Source:
https://github.com/awslabs/kinesis-aggregation/blob/master/aggregation-format.md. The message is read here without a
protobuf library: it has two levels and three wire types that matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Aggregate", "SubRecord", "hash_key", "unpack"]

MAGIC = b"\xf3\x89\x9a\xc2"
DIGEST_BYTES = 16
MAX_HASH_KEY = 2**128 - 1

# Protobuf wire types: https://protobuf.dev/programming-guides/encoding/
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10

_Field = tuple[int, int, int, int]
"""Number, wire type, and a varint's value and 0, or the start and end of the bytes."""


class _MalformedError(ValueError):
    """The bytes are not the message that they claim to be."""


@dataclass(frozen=True, slots=True)
class SubRecord:
    """One user record of an aggregate; its place in the aggregate is its sub-sequence number, from 0."""

    partition_key: str
    explicit_hash_key: int | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The user records of one stream record.

    Only places are kept: a hostile record of 1 MB may hold 300,000 user records, which are made one by one.
    """

    message: bytes
    partition_keys: tuple[str, ...]
    explicit_hash_keys: tuple[int, ...]
    places: tuple[tuple[int, int | None, int, int], ...]
    """Index of the partition key and of the explicit hash key, start and end of the data in `message`."""

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[SubRecord]:
        for key, explicit, start, end in self.places:
            explicit_hash_key = None if explicit is None else self.explicit_hash_keys[explicit]
            yield SubRecord(self.partition_keys[key], explicit_hash_key, self.message[start:end])

    def belongs_to(self, hash_range: tuple[int, int]) -> bool:
        """Tell whether all user records belong to a shard with this range of hash keys, both ends included.

        A producer whose map of the shards is old packs for a shard that was split meanwhile; it finds out and sends
        the user records again. The Kinesis Client Library therefore drops the whole aggregate if one of its user
        records lies outside (AggregatorUtil.deaggregate), and so do its users who count on it.
        """
        first, last = hash_range
        if first <= 0 and last >= MAX_HASH_KEY:
            return True
        explicit = {place[1] for place in self.places if place[1] is not None}
        by_key = {place[0] for place in self.places if place[1] is None}
        return all(first <= self.explicit_hash_keys[index] <= last for index in explicit) and all(
            first <= hash_key(self.partition_keys[index]) <= last for index in by_key
        )


def hash_key(partition_key: str) -> int:
    """Return the place of a partition key among the shards: its MD5 as a number of 128 bits."""
    return int.from_bytes(hashlib.md5(partition_key.encode(), usedforsecurity=False).digest(), "big")


def unpack(data: bytes) -> Aggregate | None:
    """Return the user records of an aggregated record, or None for anything else.

    A record that only looks aggregated (a wrong digest, a message that can't be read, an index that points nowhere)
    is somebody's data and not an aggregate.
    """
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + DIGEST_BYTES:
        return None
    message = data[len(MAGIC) : -DIGEST_BYTES]
    if hashlib.md5(message, usedforsecurity=False).digest() != data[-DIGEST_BYTES:]:
        return None
    try:
        return _aggregate(message)
    except (_MalformedError, UnicodeDecodeError):
        return None


def _aggregate(message: bytes) -> Aggregate:
    partition_keys: list[str] = []
    explicit_hash_keys: list[int] = []
    places: list[tuple[int, int | None, int, int]] = []
    for number, wire, start, end in _fields(message, 0, len(message)):
        if number in (1, 2, 3) and wire != _BYTES:
            raise _MalformedError
        if number == 1:
            partition_keys.append(message[start:end].decode())
        elif number == 2:
            explicit_hash_keys.append(_decimal(message[start:end]))
        elif number == 3:
            places.append(_place(message, start, end))
    if not places:
        # Nobody aggregates nothing; passed on whole, it is at least seen.
        raise _MalformedError
    if any(
        key >= len(partition_keys) or (explicit is not None and explicit >= len(explicit_hash_keys))
        for key, explicit, _, _ in places
    ):
        raise _MalformedError
    return Aggregate(message, tuple(partition_keys), tuple(explicit_hash_keys), tuple(places))


def _place(message: bytes, start: int, end: int) -> tuple[int, int | None, int, int]:
    key: int | None = None
    explicit: int | None = None
    data: tuple[int, int] | None = None
    for number, wire, first, second in _fields(message, start, end):
        if (number in (1, 2) and wire != _VARINT) or (number == 3 and wire != _BYTES):
            raise _MalformedError
        if number == 1:
            key = first
        elif number == 2:
            explicit = first
        elif number == 3:
            data = (first, second)
    if key is None or data is None:
        raise _MalformedError
    return key, explicit, *data


def _fields(message: bytes, at: int, end: int) -> Iterator[_Field]:
    """Read the fields of a message between two places; unknown ones are given too, as the format may grow."""
    while at < end:
        tag, at = _varint(message, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _MalformedError
        if wire == _VARINT:
            value, at = _varint(message, at, end)
            yield number, wire, value, 0
            continue
        if wire == _BYTES:
            length, at = _varint(message, at, end)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise _MalformedError
        if length > end - at:
            raise _MalformedError
        yield number, wire, at, at + length
        at += length


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST_VARINT):
        if at >= end:
            raise _MalformedError
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at
    raise _MalformedError


def _decimal(text: bytes) -> int:
    # At most 39 digits, so that a long text costs nothing.
    if not (text.isdigit() and len(text) <= 39):
        raise _MalformedError
    value = int(text)
    if value > MAX_HASH_KEY:
        raise _MalformedError
    return value
