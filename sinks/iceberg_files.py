"""Parquet data files of the Iceberg tables: writes rows into them, and rewrites them without some of their rows.

A data file is written once and never changed; it becomes part of a table only by a commit that names it. What a
commit says of a file is known when it is encoded, before it is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import tenacity
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
from pyiceberg.manifest import DATA_FILE_TYPE, DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.typedef import Record
from pyiceberg.utils.concurrent import ExecutorFactory

from core.errors import UnreachableError
from sinks.iceberg_catalog import RETRY_PROPERTY
from sinks.iceberg_io import HeldFiles
from sinks.iceberg_rows import Key, Row

__all__ = [
    "EncodedFiles",
    "KeyIndex",
    "StoredFile",
    "encode_rows",
    "encode_table",
    "key_array",
    "keys_as_array",
    "put_files",
    "read_files",
    "restore_file",
    "store_file",
    "without_keys",
    "write_table",
]

StoredFile = dict[str, Any]
"""A data file's entry as plain values, so that a recovery snapshot outlives a new version of pyiceberg."""

WRITE_SECONDS = 60.0
# Between the parts of a key that is made of several columns; no text of ours has the unit separator.
KEY_SEPARATOR = "\x1f"
_FORMAT_VERSION: Literal[2] = 2


@dataclass(frozen=True, slots=True)
class EncodedFiles:
    """Data files that are not stored yet: what a commit says of them, and their contents by location."""

    files: tuple[DataFile, ...] = ()
    contents: Mapping[str, pa.Buffer] = field(default_factory=dict)


def encode_rows(table: Table, rows: Sequence[Row]) -> EncodedFiles:
    """Make new data files of the table out of rows, one per partition and target size; none for no rows."""
    schema = table.schema().as_arrow()
    try:
        data = pa.Table.from_pylist(list(rows), schema=schema)
    except UnicodeEncodeError:
        # A lone surrogate has no UTF-8 form; a document must not stop the flow for it.
        data = pa.Table.from_pylist([_encodable(row) for row in rows], schema=schema)
    return encode_table(table, data)


def encode_table(table: Table, data: pa.Table) -> EncodedFiles:
    """Make new data files of the table out of an Arrow table; none for no rows."""
    if data.num_rows == 0:
        return EncodedFiles()
    held = HeldFiles()
    files = tuple(_dataframe_to_data_files(table.metadata, data, cast("FileIO", held)))
    for file in files:
        # pyiceberg sets it only on files that it read from a manifest, and needs it to read one.
        file.spec_id = table.metadata.default_spec_id
    return EncodedFiles(files, held.contents())


def put_files(table: Table, contents: Mapping[str, pa.Buffer]) -> None:
    """Store the contents of data files, side by side; to repeat it changes nothing.

    Raises UnreachableError when the object store does not take them after all retries.
    """
    try:
        # Around all of them: a pause must not hold a thread of the pool, which is pyiceberg's for all that it reads.
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_delay(float(table.io.properties.get(RETRY_PROPERTY, WRITE_SECONDS))),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
            retry=tenacity.retry_if_exception_type(OSError),
            reraise=True,
        ):
            with attempt:
                list(ExecutorFactory.get_or_create().map(partial(_put, table), contents.items()))
    except OSError as error:
        raise UnreachableError(
            f"a data file of {'.'.join(table.name())} can't be written to {table.location()}: {error}"
        ) from error


def _put(table: Table, file: tuple[str, pa.Buffer]) -> None:
    location, content = file
    with table.io.new_output(location).create(overwrite=True) as stream:
        stream.write(content)


def write_table(table: Table, data: pa.Table) -> tuple[DataFile, ...]:
    """Encode an Arrow table as new data files and store them; none for no rows. Raises like `put_files`."""
    encoded = encode_table(table, data)
    put_files(table, encoded.contents)
    return encoded.files


def without_keys(table: Table, files: Iterable[DataFile], columns: Sequence[str], keys: Collection[Key]) -> pa.Table:
    """Read the rows of data files whose key is none of `keys`, with all columns."""
    data = read_files(table, [FileScanTask(file) for file in files], table.schema())
    gone = pc.is_in(key_array(data, columns), value_set=keys_as_array(table, columns, keys))
    return data.filter(pc.invert(gone))


class KeyIndex:
    """Knows which data files of a table hold which keys.

    Keys are random, so that the bounds in a table's metadata exclude no file: without the index each commit would
    read the key columns of the whole table. Data files never change, so each one's are read once and kept in memory
    (about 40 bytes a row). Not safe to share between threads.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._arrays: dict[str, pa.Array] = {}

    def holding(self, table: Table, keys: Collection[Key]) -> list[DataFile]:
        """Give the live data files that hold any of the keys."""
        tasks = {task.file.file_path: task for task in table.scan(selected_fields=self._columns).plan_files()}
        self._arrays = {path: array for path, array in self._arrays.items() if path in tasks}
        wanted = keys_as_array(table, self._columns, keys)
        found = []
        for path, task in tasks.items():
            if path not in self._arrays:
                self._arrays[path] = key_array(
                    read_files(table, [task], table.schema().select(*self._columns)), self._columns
                )
            if pc.any(pc.is_in(self._arrays[path], value_set=wanted)).as_py():
                found.append(task.file)
        return found


def store_file(file: DataFile) -> StoredFile:
    """Take a data file's entry apart into plain values."""
    values = dict(zip([field.name for field in DATA_FILE_TYPE[_FORMAT_VERSION].fields], file._data, strict=True))
    return {
        **values,
        "content": file.content.value,
        "file_format": file.file_format.value,
        "partition": list(file.partition._data),
    }


def restore_file(stored: StoredFile) -> DataFile:
    """Put a data file's entry together again."""
    return DataFile.from_args(
        _table_format_version=_FORMAT_VERSION,
        **{
            **stored,
            "content": DataFileContent(stored["content"]),
            "file_format": FileFormat(stored["file_format"]),
            "partition": Record(*stored["partition"]),
        },
    )


def read_files(table: Table, tasks: Sequence[FileScanTask], schema: Schema) -> pa.Table:
    """Read data files whole, with the columns of `schema`."""
    return ArrowScan(
        table_metadata=table.metadata, io=table.io, projected_schema=schema, row_filter=AlwaysTrue()
    ).to_table(tasks)


def keys_as_array(table: Table, columns: Sequence[str], keys: Collection[Key]) -> pa.Array:
    """Make one string of each key, as `key_array` does."""
    rows = [_encodable(dict(zip(columns, key, strict=True))) for key in keys]
    return key_array(pa.Table.from_pylist(rows, schema=table.schema().select(*columns).as_arrow()), columns)


def key_array(data: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Make one string of each row's key."""
    parts = [pc.cast(data.column(name).combine_chunks(), pa.large_string()) for name in columns]
    if len(parts) == 1:
        return parts[0]
    return pc.binary_join_element_wise(*parts, pa.scalar(KEY_SEPARATOR, pa.large_string()))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _encodable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_encodable(item) for item in value)
    return value
