"""Forms: the same however they are cut, bounded, and refused when they are not what the document says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.service.forms import FileForm, boundary_of, read_form
from producers.service.problems import ProblemError

BOUNDARY = "frontier"


def part(name: str, content: bytes, *, more: str = "", kind: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n'
    return (head + (f"Content-Type: {kind}\r\n" if kind else "") + "\r\n").encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def read(body: bytes, cuts: Sequence[int] = (), *, most: int = 1000) -> tuple[FileForm, bytes]:
    edges = [0, *sorted(cuts), len(body)]

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in pairwise(edges):
            if start < end:
                yield body[start:end]

    content = bytearray()

    async def write(piece: bytes) -> None:
        content.extend(piece)

    result = asyncio.run(read_form(pieces(), BOUNDARY, write, max_file_bytes=most))
    return result, bytes(content)


# Contents that look like the end of a part without being it.
CONTENT = st.lists(
    st.sampled_from([b"a", b"\r", b"\n", b"-", b"--frontier", b"\r\n--fron", b"\r\n-", b"\x00\xff"]), max_size=20
).map(b"".join)


@given(CONTENT.filter(lambda content: b"\r\n--frontier" not in b"\r\n" + content), st.data())
def test_a_form_is_the_same_however_it_is_cut(content: bytes, data: st.DataObject) -> None:
    body = form(part("session", b"s-1"), part("file", content, more='; filename="a.md"'), part("identity", b"x"))
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    result, file = read(body, cuts)
    assert file == content
    assert (result.fields.session, result.fields.identity, result.filename) == ("s-1", "x", "a.md")


def test_a_file_needs_no_name_and_says_its_type() -> None:
    result, _ = read(form(part("file", b"a", kind="text/markdown; charset=utf-8")))
    assert (result.filename, result.content_type) == (None, "text/markdown")
    result, _ = read(form(part("file", b"a", kind="application/octet-stream")))
    assert result.content_type is None


@pytest.mark.parametrize(
    ("name", "kept"), [("../../etc/passwd", "passwd"), ("C:\\\\a\\\\b.md", "b.md"), ("..", ".."), ("a\u202eb", "ab")]
)
def test_of_a_file_name_the_last_part_is_kept(name: str, kept: str) -> None:
    result, _ = read(form(part("file", b"", more=f'; filename="{name}"')))
    assert result.filename == kept


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no form", 400),
        (form(), 422),
        (form(part("file", b"a"))[:-6], 400),
        (form(part("session", b"s")), 422),
        (form(part("file", b"a"), part("file", b"b")), 422),
        (form(part("file", b"a"), part("other", b"b")), 422),
        (form(part("file", b"a"), part("session", b"s"), part("session", b"s")), 422),
        (form(part("file", b"a"), part("session", b"\xff")), 400),
        (form(part("file", b"a"), part("session", b"not one")), 422),
        (form(part("file", b"a"), part("metadata", b"{")), 422),
        (form(part("file", b"a"), part("metadata", b'{"a": 1}')), 422),
        (form(part("file", b"a"), part("metadata", b"[" * 10_000)), 422),
        (form(part("file", b"a" * 1001)), 413),
        (form(part("file", b"a"), part("metadata", b"a" * 600_000)), 413),
        (form(*(part("file", b"a") for _ in range(9))), 422),
        (form(part("file", b"a", more='; filename="' + "a" * 256 + '"')), 422),
        (form(part("file", b"a", more="\r\nX: " + "a" * 10_000)), 413),
        (b"--frontier\r\nContent-Type: text/plain\r\n\r\na\r\n--frontier--", 400),
    ],
)
def test_another_form_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(ProblemError) as refused:
        read(body)
    assert refused.value.kind.status == status


@pytest.mark.parametrize("header", [None, "", "text/plain", "application/json", "multipart/mixed; boundary=a"])
def test_only_forms_are_read(header: str | None) -> None:
    with pytest.raises(ProblemError, match="Unsupported media type"):
        boundary_of(header)


@pytest.mark.parametrize("boundary", ["", '""', "a" * 201, "\xe9"])
def test_a_form_has_a_boundary(boundary: str) -> None:
    with pytest.raises(ProblemError, match="boundary"):
        boundary_of(f"multipart/form-data; boundary={boundary}")
