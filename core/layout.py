"""Where the product keeps what it writes itself within its bucket, beside the documents that others put there."""

from __future__ import annotations

from urllib.parse import urlsplit

from core.settings import Settings

__all__ = ["CURSORS", "FIGURES", "own_prefixes"]

FIGURES = "figures/"
"""Of the source's shards, for `pkm status`."""

CURSORS = "producers/cursors/"
"""Of producers: where each goes on with a source."""

_VECTORS, _METADATA, _SNAPSHOTS = "vectors/", "metadata/", "snapshots/"
_LEDGERS = ("dead-letters/", "replays/")


def own_prefixes(settings: Settings) -> tuple[str, ...]:
    """Return the prefixes in `settings.bucket` of tables, vectors, metadata, snapshots, ledgers, cursors, figures.

    The tables' is left out where PKM_WAREHOUSE names another bucket, or a whole bucket.
    """
    warehouse = urlsplit(settings.warehouse_uri)
    folder = warehouse.path.strip("/")
    tables = (f"{folder}/",) if warehouse.netloc == settings.bucket and folder else ()
    return (*tables, _VECTORS, _METADATA, _SNAPSHOTS, *_LEDGERS, CURSORS, FIGURES)
