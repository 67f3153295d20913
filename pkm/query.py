"""Questions about what has been ingested: nearest chunks, and SQL over the Iceberg tables."""

from __future__ import annotations

import re
from typing import Any

import duckdb

from core.errors import MissingError, QueryError, SettingsError, reason
from core.settings import Settings
from models.embedder import load_embedder
from models.registry import profile
from sinks import iceberg_catalog, lance
from sinks.iceberg_tables import TABLES

__all__ = ["run_sql", "search_text"]


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

    The query sees these tables and nothing else: no files, no network, no extensions. Tables are read whole into
    memory. Raises QueryError for a query that can't be read or run, MissingError for a table that does not exist.
    """
    with duckdb.connect(":memory:") as connection:
        for spec in TABLES:
            if _mentions(query, spec.identifier):
                connection.execute(f"create schema if not exists {spec.identifier.partition('.')[0]}")
                connection.register(f"rows of {spec.identifier}", iceberg_catalog.scan(settings, spec.identifier))
                connection.execute(f'create view {spec.identifier} as from "rows of {spec.identifier}"')
        connection.execute("set timezone = 'UTC'")
        connection.execute("set temp_directory = ''")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            # Through Arrow, since DuckDB's own conversion of times with a zone needs another package.
            relation = connection.sql(query)
            return relation.to_arrow_table().to_pylist(maps_as_pydicts="lossy") if relation else []
        except duckdb.CatalogException as error:
            tables = ", ".join(spec.identifier for spec in TABLES)
            raise MissingError(f"{reason(error)} The tables are: {tables}") from error
        except duckdb.Error as error:
            raise QueryError(f"the query failed: {reason(error)}") from error


def _mentions(query: str, identifier: str) -> bool:
    # DuckDB's own list of a query's tables lacks those of joins with `using`. A table too many does no harm.
    namespace, _, table = identifier.partition(".")
    return re.search(rf'\b{namespace}"?\s*\.\s*"?{table}\b', query, re.IGNORECASE) is not None
