"""Questions about what has been ingested: nearest chunks, and SQL over the Iceberg tables."""

from __future__ import annotations

import itertools
import re
from typing import Any

import duckdb
import pyarrow as pa  # type: ignore[import-untyped]

from core.errors import MissingError, QueryError, SettingsError, reason
from core.settings import Settings
from models.embedder import load_embedder
from models.registry import profile
from sinks import iceberg_catalog, lance
from sinks.iceberg_tables import TABLES
from sinks.lance_dataset import open_dataset

__all__ = ["run_sql", "search_text"]

MAX_ROWS = 1_000_000
MAX_RESULT_BYTES = 256 * 1024 * 1024
BATCH_ROWS = 10_000
# What a query may use for itself, beside the tables: it is a guest on a machine that may run the flow.
MEMORY_LIMIT = "25%"
# MULTI is how DuckDB reads PIVOT. Nothing else has anything to do here: the tables are not changed with SQL.
_READING = frozenset({"SELECT", "EXPLAIN", "MULTI"})


def search_text(settings: Settings, text: str, *, k: int) -> list[lance.SearchHit]:
    """Return the `k` chunks nearest to `text`, best first; scores are cosine similarities."""
    model = profile(settings).embedding
    if model is None:
        raise SettingsError("PKM_ENRICH=none has no vectors to search: set it to embedded or cloud")
    if not text.strip():
        raise QueryError("nothing to search for: give some words")
    # Before the model is loaded, which takes seconds.
    open_dataset(settings)
    vector = load_embedder(model, threads=settings.threads).encode([text])[0]
    return lance.search(settings, vector, k=k)


def run_sql(settings: Settings, query: str) -> list[dict[str, Any]]:
    """Run one DuckDB query over the Iceberg tables that it names, such as `bronze.notes`.

    The query sees these tables and nothing else: no files, no network, no extensions, no settings to change. Tables
    are read whole into memory. Raises QueryError for a query that can't be read or run, or has a result of more than
    a million rows or 256 MB, MissingError for a table that does not exist.
    """
    with duckdb.connect(":memory:") as connection:
        _check_it_reads(connection, query)
        for spec in TABLES:
            if _mentions(query, spec.identifier):
                connection.execute(f"create schema if not exists {spec.identifier.partition('.')[0]}")
                connection.register(f"rows of {spec.identifier}", iceberg_catalog.scan(settings, spec.identifier))
                connection.execute(f'create view {spec.identifier} as from "rows of {spec.identifier}"')
        connection.execute("set timezone = 'UTC'")
        connection.execute("set temp_directory = ''")
        connection.execute("set enable_external_access = false")
        connection.execute(f"set memory_limit = '{MEMORY_LIMIT}'")
        if settings.threads is not None:
            connection.execute(f"set threads = {settings.threads}")
        connection.execute("set lock_configuration = true")
        try:
            # Through Arrow, since DuckDB's own conversion of times with a zone needs another package.
            return _rows(connection.sql(query).to_arrow_reader(BATCH_ROWS))
        except duckdb.CatalogException as error:
            if "Table with name" not in str(error):
                raise QueryError(f"the query failed: {reason(error)}") from error
            tables = ", ".join(spec.identifier for spec in TABLES)
            raise MissingError(f"{reason(error)}. The tables are: {tables}") from error
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise QueryError(f"the query failed: {reason(error)}") from error
        except (OverflowError, ValueError) as error:
            raise QueryError(
                f"the result has a value that can't be shown ({reason(error)}): cast it to text"
            ) from error


def _check_it_reads(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    try:
        kinds = [statement.type.name for statement in connection.extract_statements(query)]
    except duckdb.Error as error:
        raise QueryError(f"the query can't be read: {reason(error)}") from error
    if len(kinds) != 1:
        raise QueryError(f"give one query; this is {len(kinds)}")
    if kinds[0] not in _READING:
        raise QueryError(f"{kinds[0].replace('_', ' ')} is not a query: only those that read are run, such as select")


def _rows(batches: pa.RecordBatchReader) -> list[dict[str, Any]]:
    kept: list[pa.RecordBatch] = []
    for batch in batches:
        kept.append(batch)
        if sum(each.num_rows for each in kept) > MAX_ROWS or sum(each.nbytes for each in kept) > MAX_RESULT_BYTES:
            raise QueryError(
                f"the result has more than {MAX_ROWS:,} rows or {MAX_RESULT_BYTES // 1024**2} MB: add a limit"
            )
    table = pa.Table.from_batches(kept, batches.schema)
    rows: list[dict[str, Any]] = table.rename_columns(_distinct(table.column_names)).to_pylist(
        maps_as_pydicts="lossy"
    )
    return rows


def _distinct(names: list[str]) -> list[str]:
    # A row is a mapping, so two columns of one name would become one.
    distinct: list[str] = []
    for name in names:
        free = (f"{name}_{number}" for number in itertools.count(2))
        distinct.append(name if name not in distinct else next(each for each in free if each not in names + distinct))
    return distinct


def _mentions(query: str, identifier: str) -> bool:
    # DuckDB's own list of a query's tables lacks those of joins with `using`. A table too many does no harm.
    namespace, _, table = identifier.partition(".")
    return re.search(rf'\b{namespace}"?\s*\.\s*"?{table}\b', query, re.IGNORECASE) is not None
