"""A small lakehouse without models, for tests of commands that look at it or change it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import obstore
import orjson
import pytest

from core import aws
from core.records import event_identity, note_identity
from core.settings import Settings, load_settings
from pkm.dead_letters import Selection, list_letters
from pkm.initialise import initialise
from pkm.running import run_flow
from sinks import iceberg_catalog


@dataclass
class World:
    """A lakehouse without models, and the flow that is run over it."""

    settings: Settings

    def record(self, path: str, content: bytes, *, stored: bool = True, **changes: Any) -> dict[str, Any]:
        event_id = event_identity("upload", path, content)
        key = f"bronze/raw/upload/{event_id}"
        if stored:
            self.store(key, content)
        return {
            "event_id": event_id,
            "note_id": note_identity("upload", path),
            "source_type": "upload",
            "content_size": len(content),
            "metadata": {"path": path},
            "timestamp": "2026-11-23T08:00:00Z",
            "s3_key": key,
            **changes,
        }

    def store(self, key: str, content: bytes) -> None:
        obstore.put(aws.object_store(self.settings), key, content)

    def send(self, *records: dict[str, Any] | bytes) -> None:
        client = aws.kinesis_client(self.settings)
        for record in records:
            data = record if isinstance(record, bytes) else orjson.dumps(record)
            key = record.get("note_id", "none") if isinstance(record, dict) else "none"
            client.put_record(StreamName=self.settings.stream, Data=data, PartitionKey=key)

    def run(self) -> None:
        run_flow(self.settings, flow="knowledge", workers=1)

    def table(self, name: str) -> list[dict[str, Any]]:
        return iceberg_catalog.scan(self.settings, name).to_pylist()

    def silver(self) -> dict[str, str]:
        rows = self.table("silver.notes")
        assert len({row["note_id"] for row in rows}) == len(rows)
        return {row["note_id"]: row["event_id"] for row in rows}

    def counted(self) -> list[str]:
        return sorted(event for row in self.table("silver.metrics") for event in row["event_ids"])

    def bronze(self) -> list[str]:
        return sorted(row["event_id"] for row in self.table("bronze.notes"))

    def letters(self, selection: Selection | None = None, **options: Any) -> list[dict[str, Any]]:
        return list_letters(self.settings, selection or Selection(), **options)


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    for name, value in {"PKM_ENRICH": "none", "PKM_UNTIL_CAUGHT_UP": "1", "PKM_SNAPSHOT_SECONDS": "1"}.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    loaded = load_settings()
    initialise(loaded)
    return World(loaded)
