"""Who may commit to a table: the execution of a flow that claimed it last.

A claim is a snapshot without rows, made together with a property that names the owner. A catalog that is asked to
commit compares the newest snapshot with the one that the commit was built on, but no properties: so a claim makes
every commit fail that an older owner has begun, and when that looks again, it finds whose the table is.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from pyiceberg.table import Table, Transaction

from core.errors import FencedError
from sinks.iceberg_catalog import OWNER_PROPERTY, marker_properties, table_marker

__all__ = ["Owner", "claim"]


@dataclass(frozen=True, slots=True)
class Owner:
    """One execution of a flow as a writer of one table; each flow has an owner of its own."""

    flow: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def properties(self) -> dict[str, str]:
        """What a table says of its owner."""
        return {f"{OWNER_PROPERTY}.{self.flow}": self.token}

    def owns(self, table: Table) -> bool:
        """Tell whether the table, as it was last read, is this owner's."""
        return self.properties.items() <= table.properties.items()

    def verify(self, table: Table) -> None:
        """Raise FencedError when a newer execution has claimed the table, as it was last read."""
        if not self.owns(table):
            raise FencedError(
                f"table {'.'.join(table.name())} was claimed by a newer execution of flow {self.flow}: this one stops"
                " and commits nothing more; run a flow only once"
            )


def claim(transaction: Transaction, owner: Owner) -> None:
    """Add to a transaction what makes `owner` the table's owner; the marker stays as it is."""
    properties = {**marker_properties(table_marker(transaction._table)), **owner.properties}
    transaction.set_properties(properties)
    with transaction.update_snapshot(snapshot_properties=properties).fast_append():
        """No rows."""
