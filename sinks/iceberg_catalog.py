"""The Iceberg catalog: loads it from the settings, creates the tables, reads them and their markers."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, cast

import botocore.session
import pyarrow as pa  # type: ignore[import-untyped]
import tenacity
from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import (
    NoSuchNamespaceError,
    NoSuchTableError,
    NotInstalledError,
    RESTError,
    TableAlreadyExistsError,
)
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from sqlalchemy.exc import SQLAlchemyError

from core import aws
from core.errors import MissingError, SettingsError, UnreachableError, reason
from core.markers import Marker
from core.settings import Settings
from sinks.iceberg_io import IO_IMPLEMENTATION
from sinks.iceberg_tables import TABLES

__all__ = [
    "COMMIT_ID_PROPERTY",
    "MARKER_PROPERTY",
    "OUTSIDE_FAULTS",
    "OWNER_PROPERTY",
    "RETRY_PROPERTY",
    "check_tables",
    "create_tables",
    "load",
    "load_table",
    "look_for",
    "marker",
    "marker_properties",
    "reaching",
    "row_count",
    "scan",
    "table_marker",
    "table_names",
]

NAMESPACES = ("bronze", "silver", "gold")
CREATE_ATTEMPTS = 8
CATALOG_ATTEMPTS = 4
LOAD_ATTEMPTS = 3

MARKER_PROPERTY = "pkm.marker"
"""In a snapshot's summary: `core.markers.Marker` as JSON; in the table's properties too, as snapshots expire."""
OWNER_PROPERTY = "pkm.owner"
"""With a flow's name, in the table's properties: the execution that may commit."""
RETRY_PROPERTY = "pkm.retry-seconds"
"""Of our catalog clients: how long reading and writing files is retried."""
COMMIT_ID_PROPERTY = "pkm.commit-id"
"""In a snapshot's summary: names the commit that made it, so that a lost response can be told from a lost commit."""

TABLE_PROPERTIES = {
    "write.parquet.compression-codec": "snappy",
    # pyiceberg's own retries append again without looking whether the first attempt took effect; ours look.
    "commit.retry.num-retries": "0",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    # One metadata file per commit adds up: an epoch is a few seconds.
    "write.metadata.previous-versions-max": "20",
    "write.metadata.delete-after-commit.enabled": "true",
}

CLIENT_PROPERTIES: dict[str, Any] = {
    # The default of 10 keeps a user with a wrong endpoint waiting for minutes; the commit loop retries by itself.
    "glue.max-retries": CATALOG_ATTEMPTS - 1,
}

_CONNECTING = threading.Lock()

OUTSIDE_FAULTS: tuple[type[Exception], ...] = (OSError, BotoCoreError, ClientError, RESTError, SQLAlchemyError)
"""What the catalogs and the object store raise when they do not answer, or refuse."""


def load(settings: Settings) -> Catalog:
    """Return the catalog that the settings choose: glue, rest or sql.

    Raises UnreachableError when it does not answer; Glue is first asked when it is used.
    """
    with reaching(settings):
        return _connect(settings)


def _connect(settings: Settings) -> Catalog:
    properties: dict[str, Any] = {
        **aws.catalog_properties(settings),
        **CLIENT_PROPERTIES,
        RETRY_PROPERTY: str(settings.retry_seconds),
        "py-io-impl": IO_IMPLEMENTATION,
    }
    # Clients can be shared between threads, making them can't.
    with _CONNECTING:
        if settings.catalog == "glue":
            properties["botocore_session"] = session = _botocore_session()
            # pyiceberg sets the number of retries only; botocore's own time-outs are a minute each.
            session.set_default_client_config(aws.client_config(settings, attempts=CATALOG_ATTEMPTS))
        try:
            return _asking_once(load_catalog("pkm", **properties))
        except (ImportError, NotInstalledError) as error:
            raise SettingsError(
                f"the {settings.catalog} catalog at {_catalog_address(settings)} needs a driver that is not"
                f" installed: pip install it, or choose another PKM_CATALOG_URI ({reason(error.__cause__ or error)})"
            ) from error


def _asking_once(catalog: Catalog) -> Catalog:
    if isinstance(catalog, GlueCatalog):
        # Else each commit asks Glue whether the database is one of S3 Tables, which it is for life or never.
        catalog._is_s3tables_database = lru_cache(catalog._is_s3tables_database)  # type: ignore[method-assign]
    return catalog


@lru_cache(maxsize=1)
def _botocore_session() -> botocore.session.Session:
    # It remembers Glue's service description, which takes 50 ms to read: each command loads the catalog often.
    return botocore.session.get_session()


def load_table(catalog: Catalog, settings: Settings, identifier: str) -> Table:
    """Return a table as it is now.

    Raises MissingError when it was not created, UnreachableError when the catalog does not answer.
    """
    with reaching(settings):
        try:
            # Beside the clients' own retries, which a bad minute uses up.
            for attempt in tenacity.Retrying(
                stop=tenacity.stop_after_attempt(LOAD_ATTEMPTS),
                wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
                retry=tenacity.retry_if_exception_type(OUTSIDE_FAULTS),
                reraise=True,
            ):
                with attempt:
                    return catalog.load_table(identifier)
        except (NoSuchTableError, NoSuchNamespaceError) as error:
            raise MissingError(
                f"the {settings.catalog} catalog has no table {identifier}: create it with `pkm init`"
            ) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def create_tables(settings: Settings) -> list[str]:
    """Create the namespaces and tables that do not exist yet; gives the identifiers of all tables.

    Safe to repeat and to run twice at the same time; existing tables are left as they are.
    Raises UnreachableError when catalog or bucket do not answer.
    """
    with reaching(settings):
        # pyiceberg's sql catalog checks and creates in two steps: of two at the same time one gets a database error,
        # and finds what the other created when it tries again.
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_attempt(CREATE_ATTEMPTS),
            wait=tenacity.wait_random(0, 1),
            retry=tenacity.retry_if_exception_type(SQLAlchemyError),
            reraise=True,
        ):
            with attempt:
                _create_what_is_missing(_connect(settings))
    return [spec.identifier for spec in TABLES]


def _create_what_is_missing(catalog: Catalog) -> None:
    for namespace in NAMESPACES:
        catalog.create_namespace_if_not_exists(namespace)
    for spec in TABLES:
        # Asking first costs less than pyiceberg's way, which writes metadata and throws it away.
        if catalog.table_exists(spec.identifier):
            continue
        # The other writer's table is as good as ours.
        with contextlib.suppress(TableAlreadyExistsError):
            catalog.create_table(
                spec.identifier,
                spec.schema,
                partition_spec=spec.partition_spec,
                properties=TABLE_PROPERTIES,
            )


def scan(
    settings: Settings,
    identifier: str,
    *,
    columns: Sequence[str] | None = None,
    row_filter: BooleanExpression | str | None = None,
) -> pa.Table:
    """Read the rows of a table's newest snapshot into memory, in no particular order.

    Raises MissingError for a table that was not created, UnreachableError when catalog or bucket do not answer.
    """
    table = load_table(load(settings), settings, identifier)
    with reaching(settings):
        return table.scan(
            row_filter=AlwaysTrue() if row_filter is None else row_filter,
            selected_fields=tuple(columns) if columns is not None else ("*",),
        ).to_arrow()


def row_count(settings: Settings, identifier: str) -> int:
    """Count the rows of a table's newest snapshot, from its summary where that is exact.

    Raises MissingError for a table that was not created, UnreachableError when catalog or bucket do not answer.
    """
    table = load_table(load(settings), settings, identifier)
    snapshot = table.current_snapshot()
    if snapshot is None:
        return 0
    total = _summary_value(snapshot, "total-records")
    if total is not None and _summary_value(snapshot, "total-delete-files") in (None, "0"):
        return int(total)
    with reaching(settings):
        return table.scan().count()


def table_names(settings: Settings) -> frozenset[str]:
    """Name the tables that exist in our namespaces. Raises UnreachableError when the catalog does not answer."""
    catalog = load(settings)
    names: set[str] = set()
    with reaching(settings):
        for namespace in NAMESPACES:
            with contextlib.suppress(NoSuchNamespaceError):
                names |= {".".join(identifier) for identifier in catalog.list_tables(namespace)}
    return frozenset(names)


def check_tables(settings: Settings) -> None:
    """Raise MissingError that names every table that was not created, UnreachableError without an answer."""
    known = table_names(settings)
    missing = [spec.identifier for spec in TABLES if spec.identifier not in known]
    if missing:
        raise MissingError(f"the {settings.catalog} catalog has no {', '.join(missing)}: create with `pkm init`")


def marker(settings: Settings, identifier: str) -> Marker:
    """Return what a table has committed. Raises MissingError and UnreachableError like `scan`."""
    return table_marker(load_table(load(settings), settings, identifier))


def table_marker(table: Table) -> Marker:
    """Return the newest marker in the history of the table's current snapshot; an empty one where there is none.

    Snapshots of other writers (compaction, a person's hand) carry no marker and are passed over. When all that carry
    one have expired, the table's property tells it. History goes first: after a rollback only it is right.
    """
    for snapshot in _ancestors(table):
        value = _summary_value(snapshot, MARKER_PROPERTY)
        if value is not None:
            return Marker.from_json(value)
    return _property_marker(table)


def marker_properties(marker: Marker) -> dict[str, str]:
    """Return what a snapshot's summary, and the table's properties, say of a marker."""
    return {MARKER_PROPERTY: marker.to_json()}


def _property_marker(table: Table) -> Marker:
    value = table.properties.get(MARKER_PROPERTY)
    return Marker.from_json(value) if value else Marker()


def look_for(table: Table, commit_id: str, *, number: int) -> tuple[Marker, bool]:
    """Return the table's marker, and whether the commit with this id and number is in its history.

    Commits are numbered upwards, so the walk ends at the first one with a lower number.
    """
    newest: Marker | None = None
    for snapshot in _ancestors(table):
        value = _summary_value(snapshot, MARKER_PROPERTY)
        if value is None:
            continue
        found = Marker.from_json(value)
        newest = newest or found
        if _summary_value(snapshot, COMMIT_ID_PROPERTY) == commit_id:
            return newest, True
        if found.commit_number < number:
            break
    return newest or _property_marker(table), False


def _ancestors(table: Table) -> Iterator[Snapshot]:
    # Newest first, as far as they have not expired.
    snapshots = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
    snapshot_id = table.metadata.current_snapshot_id
    while snapshot_id is not None and (snapshot := snapshots.get(snapshot_id)) is not None:
        yield snapshot
        snapshot_id = snapshot.parent_snapshot_id


def _summary_value(snapshot: Snapshot, name: str) -> str | None:
    return cast("str | None", snapshot.summary[name]) if snapshot.summary is not None else None


@contextlib.contextmanager
def reaching(settings: Settings) -> Iterator[None]:
    """Turn faults of catalog and object store into an error that names both."""
    try:
        yield
    except OUTSIDE_FAULTS as error:
        raise UnreachableError(
            f"the {settings.catalog} catalog at {_catalog_address(settings)} or its warehouse"
            f" {settings.warehouse_uri} can't be used: {' '.join(str(error).split())}"
        ) from error


def _catalog_address(settings: Settings) -> str:
    if settings.catalog == "glue":
        return aws.endpoint("glue") or f"AWS {aws.region(settings)}"
    # Without user, password and options, which do not belong in a message.
    return re.sub(r"//[^/]*@", "//", (settings.catalog_uri or "").partition("?")[0])
