"""The product knows its own objects from documents."""

from __future__ import annotations

import pytest

from core.layout import own_prefixes
from core.settings import Settings


@pytest.mark.parametrize(
    ("warehouse", "tables"),
    [
        (None, ("warehouse/",)),
        ("s3://notes/lake/tables/", ("lake/tables/",)),
        ("s3://another/warehouse", ()),
        ("s3://notes", ()),
        ("file:///srv/warehouse", ()),
    ],
)
def test_tables_count_where_they_lie_in_a_folder_of_the_bucket(
    warehouse: str | None, tables: tuple[str, ...]
) -> None:
    settings = Settings(bucket="notes", warehouse=warehouse)

    ledgers = (
        "dead-letters/",
        "replays/",
        "bronze/metadata/",
        "producers/cursors/",
        "producers/service/",
        "figures/",
    )
    own = ("vectors/", "metadata/", "snapshots/", *ledgers)
    assert own_prefixes(settings) == (*tables, *own)
