"""pyiceberg's files, written to S3 in one request each, or kept in memory until they may be.

By itself pyiceberg begins a multipart upload for every file, however small, and asks for its size when it is written:
four requests, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Self

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow.fs import FileSystem, S3FileSystem  # type: ignore[import-untyped]
from pyiceberg.io import FileIO, OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

__all__ = ["IO_IMPLEMENTATION", "FewRequestsFileIO", "HeldFileIO"]

IO_IMPLEMENTATION = f"{__name__}.FewRequestsFileIO"
"""For pyiceberg's property `py-io-impl`."""


class FewRequestsFileIO(PyArrowFileIO):
    """What pyiceberg uses by default, with fewer requests for what is written; reading is as it was."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        connect = self.fs_by_scheme
        self.fs_by_scheme: Callable[[str, str | None], FileSystem] = lru_cache(
            lambda scheme, netloc=None: _small_at_once(connect(scheme, netloc))
        )

    def new_output(self, location: str) -> PyArrowFile:
        """Return the file to write at `location`."""
        file = super().new_output(location)
        return _WrittenFile(location, file._path, file._filesystem, file._buffer_size)


def _small_at_once(filesystem: FileSystem) -> FileSystem:
    # pyiceberg passes no option for it, but the file system says how to make another one like it.
    if not isinstance(filesystem, S3FileSystem):
        return filesystem
    make, (options,) = filesystem.__reduce__()
    return make({**options, "allow_delayed_open": True})


class HeldFileIO(PyArrowFileIO):
    """Keeps what pyiceberg writes in memory: what is in a file, and how large it is, is known before it is stored."""

    def __init__(self, io: FileIO) -> None:
        """Read what `io` reads, through its connections."""
        super().__init__(io.properties)
        if isinstance(io, PyArrowFileIO):
            self.fs_by_scheme = io.fs_by_scheme
        self._files: dict[str, _HeldFile] = {}

    def new_output(self, location: str) -> PyArrowFile:
        """Return the file that `location` will be."""
        file = super().new_output(location)
        held = self._files[location] = _HeldFile(location, file._path, file._filesystem, file._buffer_size)
        return held

    def contents(self) -> Mapping[str, pa.Buffer]:
        """Give what was written, by location."""
        return {location: file.content for location, file in self._files.items()}


class _HeldFile(PyArrowFile):
    """A file in memory."""

    _stream: pa.BufferOutputStream | None = None

    @property
    def content(self) -> pa.Buffer:
        """What was written; the file is closed then."""
        return pa.py_buffer(b"") if self._stream is None else self._stream.getvalue()

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: ARG002 - there is nothing to overwrite
        """Open the file for writing."""
        stream: OutputStream = pa.BufferOutputStream()
        self._stream = stream
        return stream

    def __len__(self) -> int:
        return len(self.content)


class _WrittenFile(PyArrowFile):
    """A file that knows how much was written to it."""

    _stream: _CountingStream | None = None

    def create(self, overwrite: bool = False) -> OutputStream:
        """Open the file for writing."""
        self._stream = _CountingStream(super().create(overwrite))
        return self._stream

    def __len__(self) -> int:
        return super().__len__() if self._stream is None else self._stream.written_bytes


class _CountingStream:
    """An output stream that counts."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        self.written_bytes = 0

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)  # type: ignore[attr-defined]

    def write(self, b: bytes) -> int:
        written = self._stream.write(b)
        self.written_bytes += written
        return written

    def tell(self) -> int:
        return self.written_bytes

    def flush(self) -> None:
        self._stream.flush()  # type: ignore[attr-defined]

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exctype: type[BaseException] | None, excinst: BaseException | None, exctb: TracebackType | None
    ) -> None:
        self.close()
