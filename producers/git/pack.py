"""A git pack that is held in memory as it came; its objects are inflated one at a time, and within limits.

The format is that of gitformat-pack(5). A pack is written by a stranger: sizes are checked before anything of that
size is made, an object that is too large is passed over piece by piece, chains of deltas have an end.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta

from core.errors import SourceError

__all__ = ["BLOB", "COMMIT", "TAG", "TREE", "OversizedError", "Pack", "index_pack"]

COMMIT, TREE, BLOB, TAG = 1, 2, 3, 4
_OFS_DELTA, _REF_DELTA = 6, 7
_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}

DIGEST_BYTES = 20
HEADER_BYTES = 12
PIECE_BYTES = 64 * 1024
# git itself writes chains of at most 4,095 deltas.
LONGEST_CHAIN = 4_095
CHAIN_BYTES = 256 * 1024 * 1024
MOST_OBJECTS = 1_000_000
# Of inflated objects, so that deltas on the same object don't inflate it each time.
CACHE_BYTES = 64 * 1024 * 1024

Buffer = bytes | bytearray | mmap.mmap
Find = Callable[[bytes], int]
"""Gives the offset of an object by its 20 bytes of id; raises KeyError without one."""


class OversizedError(Exception):
    """An object is larger than it may be; the pack is not to blame, the object is left alone."""


class _Header(NamedTuple):
    kind: int
    size: int
    base: int | bytes | None
    """Offset or id of what a delta changes."""
    body: int
    """Where the compressed bytes begin."""


class Pack:
    """Objects of a pack by their id, `find` being its index; at most `max_object_bytes` each.

    `check` is called again and again during long work, and may raise to end it.
    """

    def __init__(
        self, data: Buffer, find: Find, *, max_object_bytes: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self._data = data
        self._find = find
        self._max_object_bytes = max_object_bytes
        self._check = check
        self._cache: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._cached_bytes = 0

    def has(self, object_id: str) -> bool:
        """Tell whether the pack has the object."""
        try:
            self._find(bytes.fromhex(object_id))
        except KeyError:
            return False
        return True

    def read(self, object_id: str) -> tuple[int, bytes]:
        """Return type and content of an object.

        Raises KeyError when the pack has no such object, OversizedError when it is too large, SourceError when the
        pack is damaged.
        """
        return self.read_at(self._find(bytes.fromhex(object_id)))

    def read_at(self, offset: int) -> tuple[int, bytes]:
        """Return type and content of the object at `offset`; raises like `read`."""
        deltas: list[tuple[int, bytes]] = []
        chain_bytes, at = 0, offset
        while (found := self._cache.get(at)) is None:
            self._check()
            header = self._header(at)
            content = self._inflate(header)
            if header.base is None:
                found = (header.kind, content)
                self._remember(at, found)
                break
            deltas.append((at, content))
            chain_bytes += len(content)
            if len(deltas) > LONGEST_CHAIN or chain_bytes > CHAIN_BYTES:
                raise SourceError(f"a git pack has a chain of more than {LONGEST_CHAIN:,} deltas, or very large ones")
            at = header.base if isinstance(header.base, int) else self._find(header.base)
        else:
            self._cache.move_to_end(at)
        kind, content = found
        for at, delta in reversed(deltas):
            content = self._applied(content, delta)
            self._remember(at, (kind, content))
        return kind, content

    def _header(self, offset: int) -> _Header:
        return _read_header(self._data, offset)

    def _inflate(self, header: _Header) -> bytes:
        if header.size > self._max_object_bytes:
            raise OversizedError
        return b"".join(_Inflated(self._data, header.body, header.size, self._check))

    def _applied(self, base: bytes, delta: bytes) -> bytes:
        # The size that a delta makes stands behind that of its base, and nothing has been made of it yet.
        _, position = _read_size(delta, 0)
        size, _ = _read_size(delta, position)
        if size > self._max_object_bytes:
            raise OversizedError
        try:
            return b"".join(apply_delta(base, delta))
        except (ApplyDeltaError, ValueError, IndexError, AssertionError) as error:
            raise _damaged() from error

    def _remember(self, offset: int, found: tuple[int, bytes]) -> None:
        if offset in self._cache:
            return
        self._cache[offset] = found
        self._cached_bytes += len(found[1])
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, (_, dropped) = self._cache.popitem(last=False)
            self._cached_bytes -= len(dropped)


def index_pack(data: Buffer, *, max_object_bytes: int, check: Callable[[], None] = lambda: None) -> Pack:
    """Find all objects of a pack that came without an index; those that are too large or hang on one have none.

    Raises SourceError when the pack is damaged, is not whole, or has more than 1,000,000 objects.
    """
    if data[:4] != b"PACK" or len(data) < HEADER_BYTES + DIGEST_BYTES:
        raise _damaged()
    with memoryview(data) as view:
        if hashlib.sha1(view[:-DIGEST_BYTES], usedforsecurity=False).digest() != view[-DIGEST_BYTES:]:
            raise _damaged()
    version, count = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
    if version not in {2, 3}:
        raise SourceError(f"a git pack has version {version}, only 2 and 3 are read")
    if count > MOST_OBJECTS:
        raise SourceError(f"a git pack has {count:,} objects, at most {MOST_OBJECTS:,} are read")
    offsets: dict[bytes, int] = {}
    pack = Pack(data, offsets.__getitem__, max_object_bytes=max_object_bytes, check=check)
    waiting = []
    position = HEADER_BYTES
    for _ in range(count):
        header = _read_header(data, position)
        body = _Inflated(data, header.body, header.size, check)
        if header.base is None:
            digest = _digest(header.kind, header.size)
            for piece in body:
                digest.update(piece)
            offsets[digest.digest()] = position
        else:
            for _ in body:
                pass
            waiting.append(position)
        position = body.end
    _resolve(pack, offsets, waiting)
    return pack


def _resolve(pack: Pack, offsets: dict[bytes, int], waiting: list[int]) -> None:
    """Find the ids of deltas. What they change usually stands before them, but need not."""
    while waiting:
        left = []
        for offset in waiting:
            try:
                kind, content = pack.read_at(offset)
            except OversizedError:
                continue
            except KeyError:
                left.append(offset)
                continue
            digest = _digest(kind, len(content))
            digest.update(content)
            offsets[digest.digest()] = offset
        if len(left) == len(waiting):
            return
        waiting = left


class _Inflated:
    """The pieces of a compressed object, which must be of `size` bytes together; then `end` is where it ended."""

    def __init__(self, data: Buffer, start: int, size: int, check: Callable[[], None]) -> None:
        self._data, self._size, self._check = data, size, check
        self.end = start

    def __iter__(self) -> Iterator[bytes]:
        inflater = zlib.decompressobj()
        done = 0
        pending = b""
        while not inflater.eof:
            self._check()
            if not pending:
                pending = bytes(self._data[self.end : self.end + PIECE_BYTES])
                self.end += len(pending)
                if not pending:
                    raise _damaged()
            try:
                piece = inflater.decompress(pending, PIECE_BYTES)
            except zlib.error as error:
                raise _damaged() from error
            pending = inflater.unconsumed_tail
            done += len(piece)
            if done > self._size:
                raise _damaged()
            yield piece
        if done != self._size:
            raise _damaged()
        self.end -= len(inflater.unused_data)


def _read_header(data: Buffer, offset: int) -> _Header:
    try:
        byte = data[offset]
        kind, size, shift, position = (byte >> 4) & 7, byte & 15, 4, offset + 1
        while byte & 0x80:
            byte = data[position]
            size |= (byte & 0x7F) << shift
            shift, position = shift + 7, position + 1
            if shift > 63:
                raise _damaged()
        if kind in _NAMES:
            return _Header(kind, size, None, position)
        if kind == _REF_DELTA:
            return _Header(kind, size, bytes(data[position : position + DIGEST_BYTES]), position + DIGEST_BYTES)
        if kind != _OFS_DELTA:
            raise _damaged()
        byte = data[position]
        back, position = byte & 0x7F, position + 1
        while byte & 0x80:
            byte = data[position]
            back, position = ((back + 1) << 7) | (byte & 0x7F), position + 1
    except IndexError:
        raise _damaged() from None
    # Only backwards, so that a chain has an end.
    if not 0 < back <= offset - HEADER_BYTES:
        raise _damaged()
    return _Header(kind, size, offset - back, position)


def _read_size(delta: bytes, position: int) -> tuple[int, int]:
    size = shift = 0
    while True:
        if position >= len(delta) or shift > 63:
            raise _damaged()
        byte = delta[position]
        size |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if not byte & 0x80:
            return size, position


def _digest(kind: int, size: int) -> hashlib._Hash:
    return hashlib.sha1(_NAMES[kind] + b" %d\0" % size, usedforsecurity=False)


def _damaged() -> SourceError:
    return SourceError("a git pack is damaged, or did not come whole: try again, or run `git fsck` on the repository")
