"""Questions about what has been ingested: nearest chunks, and SQL over the Iceberg tables."""

from __future__ import annotations

from typing import Any

import duckdb

from core.errors import MissingError, PkmError, SettingsError
from core.settings import Settings
from models.embedder import load_embedder
from models.registry import profile
from sinks import iceberg_catalog, lance

__all__ = ["QueryError", "run_sql", "search_text"]


class QueryError(PkmError):
    """A query can't be understood or run."""


def search_text(settings: Settings, text: str, *, k: int) -> list[lance.SearchHit]:
    """Return the `k` chunks nearest to `text`, best first; scores are cosine similarities."""
    model = profile(settings).embedding
    if model is None:
        raise SettingsError("PKM_ENRICH=none has no vectors to search: set it to embedded or cloud")
    if not text.strip():
        raise QueryError("nothing to search for: give some words")
    vector = load_embedder(model, threads=settings.threads).encode([text])[0]
    return lance.search(settings, vector, k=k)


def run_sql(settings: Settings, query: str) -> list[dict[str, Any]]:
    """Run a DuckDB query over the Iceberg tables that it names, such as `bronze.notes`.

    The query sees these tables and nothing else: no files, no network, no extensions. Raises QueryError.
    """
    with duckdb.connect(":memory:") as connection:
        try:
            names = sorted(connection.get_table_names(query, qualified=True))
        except duckdb.Error as error:
            raise QueryError(f"the query can't be read: {_first_line(error)}") from error
        known = iceberg_catalog.table_names(settings)
        for name in names:
            if name not in known:
                continue
            namespace, _, table = name.partition(".")
            connection.execute(f'create schema if not exists "{namespace}"')
            connection.register("scanned", iceberg_catalog.scan(settings, name))
            connection.execute(f'create table "{namespace}"."{table}" as select * from scanned')  # noqa: S608 - the name is one of ours
            connection.unregister("scanned")
        connection.execute("set timezone = 'UTC'")
        connection.execute("set temp_directory = ''")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            # Through Arrow, since DuckDB's own conversion of times with a zone needs another package.
            relation = connection.sql(query)
            rows: list[dict[str, Any]] = relation.to_arrow_table().to_pylist() if relation else []
        except duckdb.CatalogException as error:
            raise MissingError(f"{_first_line(error)} The tables are: {', '.join(sorted(known))}") from error
        except duckdb.Error as error:
            raise QueryError(f"the query failed: {_first_line(error)}") from error
    return rows


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
