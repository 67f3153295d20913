"""pyiceberg's files: in memory, or written to S3 in one request each.

By itself pyiceberg begins a multipart upload for every file, however small, and asks for its size when it is written:
four requests, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from types import TracebackType
from typing import Self

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow.fs import FileSystem, S3FileSystem  # type: ignore[import-untyped]
from pyiceberg.io import OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

__all__ = ["IO_IMPLEMENTATION", "FewRequestsFileIO", "HeldFiles"]

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


class HeldFiles:
    """What pyiceberg's writer needs of a `FileIO`, in memory: files are known, sizes too, before they are stored."""

    def __init__(self) -> None:
        self._files: dict[str, _HeldFile] = {}

    def new_output(self, location: str) -> _HeldFile:
        """Return the file that `location` will be."""
        return self._files.setdefault(location, _HeldFile())

    def contents(self) -> Mapping[str, pa.Buffer]:
        """Give what was written, by location."""
        return {location: file.content for location, file in self._files.items()}


class _HeldFile:
    def __init__(self) -> None:
        self._stream = pa.BufferOutputStream()

    def create(self, overwrite: bool) -> pa.BufferOutputStream:  # noqa: ARG002 - there is nothing to overwrite
        return self._stream

    @cached_property
    def content(self) -> pa.Buffer:
        return self._stream.getvalue()

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
