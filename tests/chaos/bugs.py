"""Bugs to plant in the child, which the suite must find; no product code knows of them."""

from __future__ import annotations

from typing import Any

__all__ = ["BUGS", "plant"]

BUGS = {
    "no_marker": "sinks do not look at their marker",
    "no_durability": "the metadata store does not wait until a batch is durable",
    "no_references": "a snapshot is published without the commits that are still to be made",
    "no_waiting": "a snapshot is published before what it speaks of is stored",
    "no_look_up": "what a marker covers is dropped without a look into the table",
    "no_history": "a restart decides anew what became of a record",
}


def plant(name: str) -> None:
    """Plant one bug by its name; none by an empty name."""
    if name:
        globals()[f"_plant_{name}"]()


def _plant_no_marker() -> None:
    from core.markers import Marker

    Marker.covers = lambda *_: False  # type: ignore[method-assign]


def _plant_no_durability() -> None:
    from slatedb import uniffi

    from sinks import metadata_store

    async def at_once(*_: Any) -> None:
        return

    uniffi.Db.flush_with_options = at_once
    uniffi.WriteHandle.await_durable = at_once
    # By itself SlateDB puts its log on S3 every 100 ms, which hides the bug on a store that is that near.
    metadata_store.WRITER_OPTIONS["flush_interval"] = '"60s"'


def _plant_no_references() -> None:
    from core.deferred import settled
    from sinks.iceberg import TablePartition, TableState

    snapshot = TablePartition.snapshot

    def without_references(part: TablePartition) -> TableState:
        return TableState((), settled(snapshot(part)).commit_number)

    TablePartition.snapshot = without_references  # type: ignore[method-assign]


def _plant_no_waiting() -> None:
    from core.recovery.under_way import Begun

    Begun.stored = True  # type: ignore[method-assign, assignment]


def _plant_no_look_up() -> None:
    from sinks import lance, slatedb
    from sinks.iceberg_repetitions import Repetitions

    Repetitions.news = lambda *_: []  # type: ignore[method-assign]

    def beyond_the_marker(notes: Any, marker: Any, *_: Any, **__: Any) -> Any:
        return [note for note in notes if not marker.covers(note.event.position)]

    lance.uncommitted = slatedb.uncommitted = beyond_the_marker


def _plant_no_history() -> None:
    from operators import fetch

    fetch.read_as_before = lambda events, _history, read: read(events)
