"""Metadata files of Iceberg tables, kept by the process that writes or reads them.

Each commit reads the table's metadata, its list of manifests and the manifests, nearly all of which this process has
written itself a moment ago. None of them ever changes, so what is kept is right as long as it is named.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self, cast

import pyarrow as pa  # type: ignore[import-untyped]
from cachetools import LRUCache
from pyiceberg.io import InputStream, OutputStream
from pyiceberg.io.pyarrow import PyArrowFile

__all__ = ["Known", "MetadataFile", "is_metadata"]

# Manifests and their lists are some 10 kB each, a table's metadata some 2 kB for each of its snapshots.
KEPT_BYTES = 32 * 1024 * 1024


def is_metadata(location: str) -> bool:
    """Tell whether a table's metadata or a manifest is at `location`; a UUID in each name makes it the only one."""
    return location.endswith((".metadata.json", ".avro"))


class Known:
    """Contents of metadata files by location, those that were used last; safe to share between threads."""

    def __init__(self, *, most_bytes: int = KEPT_BYTES) -> None:
        self._changing = threading.Lock()
        self._contents: LRUCache[str, bytes] = LRUCache(most_bytes, getsizeof=len)

    def find(self, location: str) -> bytes | None:
        """Return what is at `location`, if it is kept."""
        with self._changing:
            return self._contents.get(location)

    def keep(self, location: str, content: bytes) -> None:
        """Keep what is at `location`, unless it alone is more than all that may be kept."""
        with self._changing:
            if len(content) <= self._contents.maxsize:
                self._contents[location] = content


_known = Known()


class MetadataFile(PyArrowFile):
    """A file of a table's metadata: read and written as a whole, and not read again."""

    def open(self, seekable: bool = True) -> InputStream:  # noqa: ARG002 - it is in memory
        """Open the file for reading."""
        return cast("InputStream", pa.BufferReader(self._content()))

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: ARG002 - its name is new
        """Open the file for writing; it is stored when it is closed."""
        return _StoredWhole(self)

    def store(self, content: bytes) -> None:
        """Store what the file is made of."""
        with super().create(overwrite=True) as stream:
            stream.write(content)
        _known.keep(self.location, content)

    def __len__(self) -> int:
        return len(self._content())

    def _content(self) -> bytes:
        content = _known.find(self.location)
        if content is None:
            with super().open(seekable=False) as stream:
                content = bytes(stream.read())
            _known.keep(self.location, content)
        return content


class _StoredWhole:
    """An output stream whose content is stored in the end, unless the block that writes it fails."""

    def __init__(self, file: MetadataFile) -> None:
        self._file = file
        self._stream = pa.BufferOutputStream()

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)

    def write(self, b: bytes) -> int:
        return int(self._stream.write(b))

    def tell(self) -> int:
        return int(self._stream.tell())

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        if not self.closed:
            self._file.store(self._stream.getvalue().to_pybytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exctype: type[BaseException] | None, excinst: BaseException | None, exctb: TracebackType | None
    ) -> None:
        if exctype is None:
            self.close()
