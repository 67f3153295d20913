"""Documents of every kind, good and bad, through the whole flow and into every store."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import orjson
import pytest

from core.records import event_identity, note_identity

FORMATS = ("md", "html", "json", "txt")
GOOD = 60


def prose() -> list[str]:
    """Real text: what installed distributions say about themselves."""
    texts = sorted(
        {
            str(found.metadata["Name"]).lower(): (found.metadata.get_payload() or "")
            for found in metadata.distributions()
        }.items()
    )
    return [text[:1200].rpartition("\n")[0] for _, text in texts if len(text) > 1500 and "\x00" not in text]


def document(number: int, text: str) -> tuple[str, bytes]:
    """Return file name and bytes of a document whose format goes by its number."""
    suffix = FORMATS[number % len(FORMATS)]
    name = f"docs/note-{number:02}.{suffix}"
    match suffix:
        case "md":
            body = f"---\ntitle: Note {number}\ntags: [a, b]\n---\n# Heading {number}\n\n{text}\n"
        case "html":
            paragraphs = "".join(f"<p>{part}</p>" for part in text.replace("<", "&lt;").split("\n\n"))
            head = f"<!doctype html><html><head><title>Note {number}</title></head>"
            body = f"{head}<body><h1>Heading</h1>{paragraphs}</body></html>"
        case "json":
            body = orjson.dumps({"title": f"Note {number}", "text": text, "tags": ["a", "b"]}).decode()
        case _:
            body = f"Note {number}\n\n{text}"
    return name, body.encode()


def announce(lakehouse: Any, path: str, content: bytes, **changes: Any) -> dict[str, Any]:
    """Put content on S3; returns the record that announces it."""
    event_id = event_identity("upload", path, content)
    key = f"bronze/raw/upload/{event_id}"
    lakehouse.put(key, content)
    return {
        "event_id": event_id,
        "note_id": note_identity("upload", path),
        "source_type": "upload",
        "content_size": len(content),
        "content_sha256": hashlib.sha256(content).hexdigest(),
        "metadata": {"path": path},
        "timestamp": datetime.now(UTC).isoformat(),
        "s3_key": key,
        **changes,
    }


def bad_records(lakehouse: Any) -> dict[str, dict[str, Any] | bytes]:
    """Eleven records that no table of notes may hold, by what is wrong with them."""
    aliases = "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9))
    content = {
        "invalid utf-8": ("bad/latin.txt", b"caf\xe9 au lait, s'il vous pla\xeet \xff\xfe\xfd"),
        "empty": ("bad/empty.md", b""),
        "50 MB": ("bad/large.txt", b"large " * (50 * 1024 * 1024 // 6)),
        "front matter": ("bad/front.md", b"---\ntitle: [unclosed\n: : :\n---\n# Hello\n"),
        "alias bomb": ("bad/bomb.md", f"---\na: &a [x, x, x]\n{aliases}\n---\n# Boom\n".encode()),
        "deep json": ("bad/deep.json", b"[" * 100_000 + b"]" * 100_000),
        "deep html": ("bad/deep.html", b"<html><body>" + b"<div>" * 40_000 + b"x" + b"</div>" * 40_000),
    }
    records: dict[str, dict[str, Any] | bytes] = {
        name: announce(lakehouse, path, body) for name, (path, body) in content.items()
    }
    missing = announce(lakehouse, "bad/missing.md", b"# Soon gone\n")
    records["missing object"] = {**missing, "s3_key": "bronze/raw/upload/nowhere"}
    records["foreign bucket"] = announce(lakehouse, "bad/foreign.md", b"# Elsewhere\n", bucket="somebody-elses")
    records["missing keys"] = {"event_id": "only-an-id"}
    records["not json"] = b"this is not JSON {"
    return records


STEPS = {
    "not json": "parse",
    "missing keys": "parse",
    "missing object": "fetch",
    "foreign bucket": "fetch",
    "50 MB": "fetch",
    "invalid utf-8": "extract",
    "empty": "extract",
    "front matter": "extract",
    "alias bomb": "extract",
    "deep json": "extract",
    "deep html": "extract",
}


@pytest.mark.timeout(480)
def test_every_document_is_in_every_table_once_and_what_is_bad_is_in_the_dead_letters(lakehouse: Any) -> None:
    texts = prose()
    assert len(texts) >= 20
    good = [announce(lakehouse, *document(number, texts[number % len(texts)])) for number in range(GOOD)]
    bad = bad_records(lakehouse)
    lakehouse.send(*good[:30], *bad.values(), good[3], *good[30:])

    lakehouse.run_until_caught_up("-w", "2")

    event_ids = {record["event_id"] for record in good}
    note_ids = {record["note_id"] for record in good}
    bronze = lakehouse.table("bronze.notes")
    assert sorted(row["event_id"] for row in bronze) == sorted(event_ids)
    assert all(row["word_count"] > 0 and row["content"] for row in bronze)
    silver = {row["note_id"]: row for row in lakehouse.table("silver.notes")}
    assert len(lakehouse.table("silver.notes")) == GOOD
    assert silver.keys() == note_ids
    for row in silver.values():
        assert row["title"]
        assert all(row["text"][e["start"] : e["end"]] == e["text"] for e in row["entities"])
        assert row["chunk_count"] >= 1
    assert sum(len(row["entities"]) for row in silver.values()) > GOOD
    assert all(row["concepts"] for row in silver.values())

    chunks = lakehouse.chunks()
    assert {row["note_id"] for row in chunks} == note_ids
    assert len({row["id"] for row in chunks}) == len(chunks) == sum(row["chunk_count"] for row in silver.values())
    assert {key.rpartition("/")[2] for key in lakehouse.index_keys("note/")} == note_ids
    windows = lakehouse.table("silver.metrics")
    assert sorted(event for row in windows for event in row["event_ids"]) == sorted(event_ids)
    assert sum(row["count"] for row in windows) == GOOD

    failures = lakehouse.table("bronze.failures")
    assert len(failures) == len(bad)
    assert all(row["error"] and row["message"] and row["shard_id"] and row["sequence_number"] for row in failures)
    by_payload = {row["payload"]: row for row in failures}
    for name, record in bad.items():
        row = by_payload[record if isinstance(record, bytes) else orjson.dumps(record)]
        assert row["step"] == STEPS[name], (name, row["message"])

    # Second versions of five notes, shorter than the first, and the deletion of two.
    changed = []
    for number in range(5):
        path, _ = document(number, "")
        text = f"Ada Lovelace wrote note {number} anew in London."
        changed.append(announce(lakehouse, path, document(number, text)[1]))
    deleted = [
        {**record, "event_id": f"deletion-{record['event_id']}", "deleted": True, "s3_key": ""}
        for record in good[10:12]
    ]
    lakehouse.send(*changed, *({k: v for k, v in record.items() if k != "s3_key"} for record in deleted))

    lakehouse.run_until_caught_up()

    gone = {record["note_id"] for record in deleted}
    rows = lakehouse.table("silver.notes")
    silver = {row["note_id"]: row for row in rows}
    assert len(rows) == len(silver) == GOOD - 2
    assert not gone & silver.keys()
    for record in changed:
        assert silver[record["note_id"]]["event_id"] == record["event_id"]
        assert "Ada Lovelace" in silver[record["note_id"]]["text"]
    assert len(lakehouse.table("bronze.notes")) == GOOD + 5 + 2
    chunks = lakehouse.chunks()
    assert sorted(row["id"] for row in chunks) == sorted(
        f"{note_id}#{chunk}" for note_id, row in silver.items() for chunk in range(row["chunk_count"])
    )
    assert {key.rpartition("/")[2] for key in lakehouse.index_keys("note/")} == silver.keys()
    for kind in ("source/", "entity/", "concept/"):
        indexed = lakehouse.index_keys(kind)
        assert not {key.rpartition("/")[2] for key in indexed} & gone
        assert len(indexed) == len(set(indexed))
    for record in changed:
        from sinks import slatedb

        note = slatedb.get_note(lakehouse.settings, record["note_id"])
        assert note is not None
        own = {key for kind in ("source/", "entity/", "concept/") for key in lakehouse.index_keys(kind)}
        assert {key for key in own if key.endswith("/" + record["note_id"])} == set(note["index_keys"])
    assert sum(row["count"] for row in lakehouse.table("silver.metrics")) == GOOD + 5 + 2
