"""What a person sees of the stream: how it is read, and what is on it; or JSON, when a script asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import orjson

from pkm.peek import Peeked
from pkm.screen import output, show_fields, show_rows
from pkm.status import Status

__all__ = ["show_peeked", "show_status"]


def show_status(status: Status, *, as_json: bool) -> None:
    """Print counts, the shards, lag and the newest snapshot."""
    if as_json:
        show_fields(asdict(status), title="", as_json=True)
        return
    show_rows([{"store": name, "rows": rows} for name, rows in status.rows.items()], as_json=False)
    output.print()
    show_rows([shard.row() for shard in status.shards], title="shards, as the flow last told", as_json=False)
    output.print()
    show_fields(status.health(), title="stream and recovery", as_json=False)


def show_peeked(records: Sequence[Peeked], *, as_json: bool) -> None:
    """Print records in order of arrival."""
    if as_json:
        show_rows([asdict(record) for record in records], as_json=True)
        return
    rows = [
        {
            "arrived": record.arrival_time,
            "position": record.position,
            "key": record.partition_key,
            "record": record.data if isinstance(record.data, str) else orjson.dumps(record.data).decode(),
        }
        for record in records
    ]
    show_rows(rows, as_json=False)
