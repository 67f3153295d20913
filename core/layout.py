"""Where the product keeps what it writes itself within its bucket, beside the documents that others put there."""

from __future__ import annotations

from urllib.parse import urlsplit

from core.settings import Settings

__all__ = [
    "CURSORS",
    "FIGURES",
    "LONG_METADATA",
    "MAX_LONG_METADATA_BYTES",
    "RAW",
    "SERVICE",
    "long_metadata_key",
    "own_prefixes",
]

RAW = "bronze/raw/"
"""Of documents as they came, by source type and event id. Read by the flow, so no prefix of the product's own."""

LONG_METADATA = "bronze/metadata/"
"""Of documents whose metadata is too long for a record of the stream."""

MAX_LONG_METADATA_BYTES = 256 * 1024
"""What such metadata may have, as JSON."""

FIGURES = "figures/"
"""Of the source's shards, for `pkm status`."""

CURSORS = "producers/cursors/"
"""Of producers: where each goes on with a source."""

SERVICE = "producers/service/"
"""Of `pkm ingest serve`: idempotency keys, receipts, and uploads that are on their way."""

_VECTORS, _METADATA, _SNAPSHOTS = "vectors/", "metadata/", "snapshots/"
_LEDGERS = ("dead-letters/", "replays/")


def long_metadata_key(sha256: str) -> str:
    """Name the JSON object that holds metadata by its own SHA-256, in hexadecimal."""
    return f"{LONG_METADATA}{sha256}.json"


def own_prefixes(settings: Settings) -> tuple[str, ...]:
    """Return the prefixes in `settings.bucket` of tables, vectors, metadata, snapshots, ledgers, producers, figures.

    The tables' is left out where PKM_WAREHOUSE names another bucket, or a whole bucket.
    """
    warehouse = urlsplit(settings.warehouse_uri)
    folder = warehouse.path.strip("/")
    tables = (f"{folder}/",) if warehouse.netloc == settings.bucket and folder else ()
    return (*tables, _VECTORS, _METADATA, _SNAPSHOTS, *_LEDGERS, LONG_METADATA, CURSORS, SERVICE, FIGURES)
