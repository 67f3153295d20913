"""Reads multipart/form-data as it comes: small fields into memory, the file piece by piece to whoever takes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import orjson
from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)
from pydantic import ValidationError

from producers.service.checking import problem_of
from producers.service.contract import MAX_FILENAME_CHARACTERS, Fields
from producers.service.problems import (
    INVALID_CONTENT,
    INVALID_REQUEST,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
)

__all__ = ["FORM_BYTES", "FileForm", "boundary_of", "read_form"]

FORM_BYTES = 640 * 1024
"""What a form may have beside its file: metadata at its longest, with every character escaped, fits."""
FIELD_BYTES = 512 * 1024
FILE = "file"
CONTENT_TYPE = "multipart/form-data"
_FIELDS = frozenset(Fields.model_fields)


@dataclass(frozen=True, slots=True)
class FileForm:
    """What a form said beside the file's content."""

    fields: Fields
    filename: str | None
    content_type: str | None


def boundary_of(content_type: str | None) -> str:
    """Return the boundary that a `Content-Type` header names; raises ProblemError (415, 400)."""
    kind, options = parse_options_header(content_type or "")
    if kind.lower() != CONTENT_TYPE:
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, f"send {CONTENT_TYPE}", headers={"Accept-Post": CONTENT_TYPE})
    boundary: str = options.get("boundary", "")
    if not boundary or len(boundary) > 200 or not boundary.isascii() or not boundary.isprintable():
        raise ProblemError(INVALID_REQUEST, "the Content-Type header names no usable boundary")
    return boundary


async def read_form(
    pieces: AsyncIterator[bytes],
    boundary: str,
    write: Callable[[bytes], Awaitable[None]],
    *,
    max_file_bytes: int,
) -> FileForm:
    """Read a form with one part `file`, whose content goes to `write`, and the parts of `Fields`, in any order.

    Raises ProblemError for a form that can't be read (400), that has other parts, one twice or none named `file`
    (422), or a part that is too large (413); and what `pieces` and `write` raise.
    """
    form = _Form(max_file_bytes)
    try:
        # Not strict: that refuses the line end after the last boundary when it comes by itself.
        with PushMultipartParser(
            boundary, max_header_size=8 * 1024, max_header_count=8, max_segment_count=8
        ) as parser:
            async for piece in pieces:
                for event in parser.parse(piece):
                    if isinstance(event, MultipartSegment):
                        form.begin(event)
                    elif event is not None and form.take(bytes(event)):
                        await write(bytes(event))
    except ParserLimitReached as error:
        raise ProblemError(TOO_LARGE, f"the form has too many parts or headers: {error}") from error
    except MultipartError as error:
        raise ProblemError(INVALID_REQUEST, f"the form can't be read: {error}") from error
    return form.result()


class _Form:
    def __init__(self, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._file: MultipartSegment | None = None
        self._file_bytes = 0
        self._fields: dict[str, bytearray] = {}
        self._current = ""

    def begin(self, segment: MultipartSegment) -> None:
        self._current = name = segment.name
        if name == FILE:
            if self._file is not None:
                raise ProblemError(INVALID_CONTENT, "the form has two files", errors=[_twice(name)])
            self._file = segment
        elif name not in _FIELDS:
            # Not quoted: it may be anything.
            unknown = {"pointer": "", "detail": f"unknown part; the parts are {FILE}, {', '.join(sorted(_FIELDS))}"}
            raise ProblemError(INVALID_CONTENT, "the form has an unknown part", errors=[unknown])
        elif name in self._fields:
            raise ProblemError(INVALID_CONTENT, "the form has a part twice", errors=[_twice(name)])
        else:
            self._fields[name] = bytearray()

    def take(self, content: bytes) -> bool:
        """Tell whether the content is the file's; what is a field's is kept."""
        if self._current == FILE:
            self._file_bytes += len(content)
            if self._file_bytes > self._max_file_bytes:
                raise ProblemError(
                    TOO_LARGE,
                    f"the file has more than {self._max_file_bytes:,} bytes (PKM_MAX_OBJECT_BYTES)",
                )
            return True
        field = self._fields[self._current]
        field += content
        if len(field) > FIELD_BYTES:
            raise ProblemError(TOO_LARGE, f"the part {self._current} has more than {FIELD_BYTES:,} bytes")
        return False

    def result(self) -> FileForm:
        if self._file is None:
            missing = {"pointer": f"/{FILE}", "detail": "is missing"}
            raise ProblemError(INVALID_CONTENT, "the form has no file", errors=[missing])
        filename = self._file.filename
        if filename is not None and len(filename) > MAX_FILENAME_CHARACTERS:
            long = {"pointer": f"/{FILE}", "detail": f"its name has more than {MAX_FILENAME_CHARACTERS} characters"}
            raise ProblemError(INVALID_CONTENT, "the file's name is too long", errors=[long])
        return FileForm(self._checked(), _plain(filename), self._declared_type())

    def _checked(self) -> Fields:
        values: dict[str, object] = {}
        try:
            for name, content in self._fields.items():
                values[name] = orjson.loads(content) if name == "metadata" else content.decode()
            return Fields.model_validate(values)
        except UnicodeDecodeError as error:
            raise ProblemError(INVALID_REQUEST, "a part of the form is not UTF-8") from error
        except orjson.JSONDecodeError as error:
            wrong = {"pointer": "/metadata", "detail": "is not JSON"}
            raise ProblemError(INVALID_CONTENT, "the part metadata is not JSON", errors=[wrong]) from error
        except ValidationError as error:
            raise problem_of(error) from error

    def _declared_type(self) -> str | None:
        # Without parameters, and only what says more than that there are bytes.
        declared = (self._file.content_type if self._file else None) or ""
        kind = parse_options_header(declared)[0].lower()
        usable = len(kind) <= 128 and kind.isascii() and kind.isprintable() and kind.count("/") == 1
        return kind if usable and kind != "application/octet-stream" else None


def _plain(filename: str | None) -> str | None:
    # Of a path the last part; a name is kept as metadata and never used as one.
    last = (filename or "").replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable()).strip() or None


def _twice(name: str) -> dict[str, str]:
    return {"pointer": f"/{name}", "detail": "comes twice"}
