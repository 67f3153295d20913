"""Packs: those that git writes are read, those that somebody made to harm are refused or left alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SourceError
from git_servers import BareRepository
from producers.git import pack as module
from producers.git.pack import BLOB, COMMIT, OversizedError, Pack, index_pack

MOST = 1024 * 1024


def header(kind: int, size: int) -> bytes:
    first, size = (kind << 4) | (size & 15), size >> 4
    out = bytearray()
    while size:
        out.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    return bytes([*out, first])


def number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pack_of(*entries: bytes, count: int | None = None) -> bytes:
    body = b"PACK" + (2).to_bytes(4, "big") + (len(entries) if count is None else count).to_bytes(4, "big")
    body += b"".join(entries)
    return body + hashlib.sha1(body).digest()


def blob(content: bytes, *, size: int | None = None) -> bytes:
    return header(BLOB, len(content) if size is None else size) + zlib.compress(content)


def delta(base: str, script: bytes) -> bytes:
    return header(7, len(script)) + bytes.fromhex(base) + zlib.compress(script)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def indexed(data: bytes) -> Pack:
    return index_pack(data, max_object_bytes=MOST)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> BareRepository:
    """A history whose pack has chains of deltas."""
    made = BareRepository(tmp_path_factory.mktemp("pack") / "r.git")
    text = os.urandom(3_000).hex()
    for version in range(12):
        made.commit({"a.md": f"{text[: version * 90]} version {version} {text}".encode(), "b.md": os.urandom(50)})
    return made


@pytest.mark.parametrize("deltas", [["--delta-base-offset"], []])
def test_every_object_of_a_pack_that_git_wrote_is_read(deltas: list[str], repository: BareRepository) -> None:
    repository.git("repack", "-adfq", "--depth=50")
    names = repository.git("rev-list", "--objects", "--all").splitlines()
    (made,) = Path(repository.path, "objects", "pack").glob("*.pack")
    ids = [name.split()[0] for name in names]
    target = repository.path / "made"
    repository.git("pack-objects", "-q", *deltas, str(target), content="\n".join(ids).encode())
    (made,) = repository.path.glob("made-*.pack")
    data = made.read_bytes()
    for path in repository.path.glob("made-*"):
        path.unlink()
    pack = indexed(data)
    for object_id in ids:
        kind, content = pack.read(object_id)
        assert hashlib.sha1(module._NAMES[kind] + b" %d\0" % len(content) + content).hexdigest() == object_id
    assert pack.read(repository.commits[-1])[0] == COMMIT
    assert not pack.has("0" * 40)
    with pytest.raises(KeyError):
        pack.read("0" * 40)


def test_a_delta_may_come_before_what_it_changes() -> None:
    base = b"hello world"
    script = number(len(base)) + number(5) + bytes([0x90, 5])
    pack = indexed(pack_of(delta(blob_id(base), script), blob(base)))
    assert pack.read(blob_id(b"hello")) == (BLOB, b"hello")


def test_an_object_that_inflates_without_end_takes_no_memory_and_is_left_alone() -> None:
    size = 100 * 1024 * 1024
    compressor = zlib.compressobj()
    piece = bytes(1024 * 1024)
    bomb = b"".join(compressor.compress(piece) for _ in range(size // len(piece))) + compressor.flush()
    data = pack_of(header(BLOB, size) + bomb, blob(b"# small\n"))
    digest = hashlib.sha1(b"blob %d\0" % size)
    for _ in range(size // len(piece)):
        digest.update(piece)
    tracemalloc.start()
    try:
        pack = indexed(data)
        with pytest.raises(OversizedError):
            pack.read(digest.hexdigest())
        assert pack.read(blob_id(b"# small\n")) == (BLOB, b"# small\n")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_delta_that_makes_a_huge_object_is_left_alone() -> None:
    base = bytes(70_000)
    script = number(len(base)) + number(1 << 40) + b"\x80" * 1_000
    pack = indexed(pack_of(blob(base), delta(blob_id(base), script), blob(b"x")))
    assert pack.has(blob_id(b"x"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PACK",
        pack_of(blob(b"x"))[:-1],
        pack_of(blob(b"x"), count=2),
        pack_of(blob(b"x", size=2)),
        pack_of(blob(b"xyz", size=2)),
        pack_of(header(BLOB, 5) + b"no zlib"),
        pack_of(header(5, 1) + zlib.compress(b"x")),
        pack_of(header(6, 1) + b"\x01" + zlib.compress(b"x")),
        pack_of(header(6, 1) + b"\x00" + zlib.compress(b"x")),
        pack_of(b"\xff" * 12),
        pack_of(blob(b"base"), delta(blob_id(b"base"), b"\x04")),
        pack_of(blob(b"base"), delta(blob_id(b"base"), number(9) + number(1) + b"\x01a")),
        pack_of(blob(b"x"), count=0xFFFFFFFF),
        b"PACK" + (4).to_bytes(4, "big") + bytes(4) + hashlib.sha1(b"PACK" + b"\0\0\0\4" + bytes(4)).digest(),
    ],
)
def test_a_damaged_pack_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError):
        indexed(data)


def test_a_chain_of_deltas_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # An index of somebody else may say that two deltas change each other.
    script = number(1) + number(1) + b"\x01a"
    data = pack_of(delta("1" * 40, script), delta("2" * 40, script))
    second = 12 + len(delta("1" * 40, script))
    pack = Pack(data, {bytes.fromhex("1" * 40): second, bytes.fromhex("2" * 40): 12}.__getitem__, max_object_bytes=99)
    with pytest.raises(SourceError, match="chain of more than"):
        pack.read("1" * 40)
    monkeypatch.setattr(module, "CHAIN_BYTES", 100)
    with pytest.raises(SourceError, match="very large ones"):
        pack.read("2" * 40)


def test_long_work_can_be_ended() -> None:
    def over() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        index_pack(pack_of(blob(b"x")), max_object_bytes=MOST, check=over)


SMALL = pack_of(
    blob(b"hello world" * 20),
    delta(blob_id(b"hello world" * 20), number(220) + number(5) + bytes([0x90, 5])),
    blob(b"# x\n"),
)


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 21), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_change_to_a_pack_is_noticed_or_harmless(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL[:-20])
    for position, byte in changes:
        data[position] = byte
    with contextlib.suppress(SourceError):
        indexed(bytes(data) + hashlib.sha1(data).digest())
