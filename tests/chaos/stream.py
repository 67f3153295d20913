"""What the chaos suite puts on the stream: notes in several versions, deletions, repetitions, and records that fail.

feeder = Feeder(settings, seed=7)
feeder.send(100)            # or feeder.run_until(stop, pause=0.1)
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any

import obstore
import orjson

from core import aws
from core.records import event_identity, note_identity
from core.settings import Settings

__all__ = ["Feeder"]

SOURCES = ("git", "web", "agent")
KINDS = {
    "new": 44,
    "version": 20,
    "deletion": 5,
    "repetition": 11,
    "late object": 4,
    "missing object": 4,
    "not UTF-8": 4,
    "not JSON": 4,
    "no event": 4,
}
LATE_RECORDS = 12


@dataclass
class Feeder:
    """Puts records on the stream and their objects on S3; remembers what each object holds."""

    settings: Settings
    seed: int
    contents: dict[str, bytes] = field(default_factory=dict)
    late_keys: set[str] = field(default_factory=set)
    """Objects that came some records after the record that announces them: a fetch may find them or not."""
    sent: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._kinesis = aws.kinesis_client(self.settings)
        self._objects = aws.object_store(self.settings)
        self._versions: dict[str, int] = {}
        self._announced: list[dict[str, Any]] = []
        self._late: list[tuple[int, str]] = []

    def run_until(self, stop: threading.Event, *, pause: float) -> None:
        """Send a record every `pause` seconds until `stop` is set."""
        while not stop.wait(pause):
            self.send(1)

    def send(self, records: int) -> None:
        """Send so many records; their kinds and contents follow from the seed."""
        self.send_kinds(*self._random.choices(list(KINDS), weights=list(KINDS.values()), k=records))

    def send_kinds(self, *kinds: str) -> None:
        """Send one record of each of these kinds, in order."""
        for kind in kinds:
            self._put(self._record(kind))
            self.sent += 1
            while self._late and self._late[0][0] <= self.sent:
                self._store(self._late.pop(0)[1])

    def finish(self) -> None:
        """Store the objects that are still to come."""
        while self._late:
            self._store(self._late.pop(0)[1])

    def _record(self, kind: str) -> dict[str, Any] | bytes:
        match kind:
            case "version" if self._versions:
                return self._version(self._random.choice(list(self._versions)))
            case "deletion" if self._versions:
                path = self._random.choice(list(self._versions))
                self._versions[path] += 1
                deletion = f"deletion-{self._versions[path]}-{note_identity(self._source(path), path)}"
                return self._announce(path, b"", event_id=deletion, deleted=True)
            case "repetition" if self._announced:
                # Mostly of late, so that many are the note's newest version, and some an older one.
                return self._random.choice(self._announced[-30:])
            case "not UTF-8":
                return self._version(f"bad/{self.sent}.txt", content=b"caf\xe9 \xff\xfe " + str(self.sent).encode())
            case "missing object":
                return {**self._version(f"bad/{self.sent}.txt"), "s3_key": f"bronze/raw/nowhere/{self.sent}"}
            case "late object":
                record = self._version(f"late/{self.sent}.txt", late=True)
                self.late_keys.add(record["s3_key"])
                self._late.append((self.sent + LATE_RECORDS, record["s3_key"]))
                return record
            case "not JSON":
                return b"not JSON { %d" % self.sent
            case "no event":
                return {"event_id": f"only-an-id-{self.sent}"}
        return self._version(f"notes/{self.sent}.txt")

    def _version(self, path: str, *, content: bytes | None = None, late: bool = False) -> dict[str, Any]:
        number = self._versions.get(path, 0) + 1
        if not path.startswith("bad/"):
            self._versions[path] = number
        if content is None:
            lines = [f"{path} version {number}"]
            lines += [
                f"line {line} of {self._random.randrange(1_000_000)}" for line in range(self._random.randrange(5))
            ]
            content = "\n".join(lines).encode()
        return self._announce(path, content, late=late)

    def _announce(self, path: str, content: bytes, *, late: bool = False, **changes: Any) -> dict[str, Any]:
        source_type = self._source(path)
        event_id = changes.pop("event_id", None) or event_identity(source_type, path, content)
        key = f"bronze/raw/{source_type}/{event_id}"
        self.contents[key] = content
        record: dict[str, Any] = {
            "event_id": event_id,
            "note_id": note_identity(source_type, path),
            "source_type": source_type,
            "content_size": len(content),
            "content_type": "text/plain",
            "metadata": {"path": path},
            "timestamp": "2026-11-23T08:00:00Z",
            **({} if changes.get("deleted") else {"s3_key": key}),
            **changes,
        }
        if not late and not changes.get("deleted"):
            self._store(key)
        self._announced.append(record)
        return record

    def _source(self, path: str) -> str:
        return SOURCES[sum(path.encode()) % len(SOURCES)]

    def _store(self, key: str) -> None:
        obstore.put(self._objects, key, self.contents[key])

    def _put(self, record: dict[str, Any] | bytes) -> None:
        data = record if isinstance(record, bytes) else orjson.dumps(record)
        key = record.get("note_id", "none") if isinstance(record, dict) else str(self._random.random())
        self._kinesis.put_record(StreamName=self.settings.stream, Data=data, PartitionKey=key)
