"""pyiceberg's files: in memory, or written to S3 in one request each.

By itself pyiceberg asks for every file whether it is there (two requests), begins a multipart upload, however small
the file is, and asks for its size: six requests, one after the other.
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

from sinks.iceberg_metadata_files import MetadataFile, is_metadata

__all__ = ["IO_IMPLEMENTATION", "FewRequestsFileIO", "HeldFiles"]

IO_IMPLEMENTATION = f"{__name__}.FewRequestsFileIO"
"""For pyiceberg's property `py-io-impl`."""

# The others are those of the catalog and of the table, which change with every commit.
_CONNECTION_PROPERTIES = ("s3.", "client.")


class FewRequestsFileIO(PyArrowFileIO):
    """What pyiceberg uses by default, with fewer requests; data files are read as they were."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        connect = self.fs_by_scheme
        # pyiceberg makes a new FileIO whenever it looks at a table, and by itself a connection for each.
        connection = tuple(
            sorted((name, value) for name, value in properties.items() if name.startswith(_CONNECTION_PROPERTIES))
        )
        self.fs_by_scheme: Callable[[str, str | None], FileSystem] = lru_cache(
            lambda scheme, netloc=None: (
                _s3(connection, scheme, netloc) if scheme.startswith("s3") else connect(scheme, netloc)
            )
        )

    def new_input(self, location: str) -> PyArrowFile:
        """Return the file to read at `location`."""
        file = super().new_input(location)
        return _as(MetadataFile, file) if is_metadata(location) else file

    def new_output(self, location: str) -> PyArrowFile:
        """Return the file to write at `location`, which must be a new one: nobody looks whether there is one."""
        file = super().new_output(location)
        return _as(MetadataFile if is_metadata(location) else _WrittenFile, file)


def _as(kind: type[PyArrowFile], file: PyArrowFile) -> PyArrowFile:
    return kind(file.location, file._path, file._filesystem, file._buffer_size)


@lru_cache(maxsize=16)
def _s3(connection: tuple[tuple[str, str], ...], scheme: str, netloc: str | None) -> FileSystem:
    return _small_at_once(PyArrowFileIO(dict(connection))._initialize_fs(scheme, netloc))


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
    """A data file, which knows how much was written to it."""

    _stream: _CountingStream | None = None

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: ARG002 - see `new_output`
        """Open the file for writing."""
        self._stream = _CountingStream(super().create(overwrite=True))
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
