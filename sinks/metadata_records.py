"""What the metadata store says about a note: its record, its index entries, and what an epoch changes. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from core.records import Note, Position
from core.results import encode as encode_results
from sinks import metadata_keys

__all__ = ["MAX_ENTITIES", "changes", "encode", "index_entries", "position_of", "record_of", "results_entry"]

MAX_ENTITIES = 500
"""Distinct entities kept of one note, the most frequent first: a dictionary of names must not swell the store."""
MAX_TITLE_CHARACTERS = 200
"""Of a title in an index entry; the record has all of it."""

Json = dict[str, Any]


def record_of(note: Note) -> Json:
    """Return the record of a note, without its list of index keys."""
    document, event = note.document, note.event
    return {
        "note_id": event.note_id,
        "event_id": event.event_id,
        "source_type": event.source_type,
        "title": document.title,
        "bucket": event.bucket,
        "s3_key": event.s3_key,
        "content_type": document.content_type,
        "content_size": event.content_size,
        "timestamp": metadata_keys.time_part(event.timestamp),
        "arrival_time": metadata_keys.time_part(event.record.arrival_time),
        "shard_id": event.position.stream_shard_id,
        # More digits than a JSON number keeps.
        "sequence_number": str(event.position.sequence_number),
        "subsequence_number": event.position.subsequence_number,
        "metadata": dict(event.metadata),
        "language": document.language,
        "word_count": document.word_count,
        "char_count": document.char_count,
        "chunk_count": len(note.chunks),
        "embedded_chunk_count": note.embedded_count,
        "link_count": len(document.links),
        "entities": _entities(note),
        "concepts": [{"text": concept.text, "score": float(concept.score)} for concept in note.concepts],
        "processing_version": note.processing_version,
        "processed_at": metadata_keys.time_part(note.processed_at) if note.processed_at else None,
    }


def position_of(stored: bytes) -> Position:
    """Return where in the stream a stored record's version of the note stands."""
    record = orjson.loads(stored)
    return Position(record["shard_id"], int(record["sequence_number"]), record["subsequence_number"])


def _entities(note: Note) -> list[Json]:
    """Count mentions of the same type and folded text; the text shown is the form seen most often."""
    forms: dict[tuple[str, str], Counter[str]] = {}
    scores: dict[tuple[str, str], float] = {}
    for entity in note.entities:
        name = (entity.type, metadata_keys.fold(entity.text))
        forms.setdefault(name, Counter())[entity.text] += 1
        scores[name] = max(float(entity.score), scores.get(name, 0.0))
    found: list[Json] = [
        {"type": name[0], "text": texts.most_common(1)[0][0], "count": texts.total(), "score": scores[name]}
        for name, texts in forms.items()
    ]
    found.sort(key=lambda entity: (-entity["count"], -entity["score"], entity["type"], entity["text"]))
    return found[:MAX_ENTITIES]


def index_entries(record: Json, note: Note) -> dict[bytes, Json]:
    """Return key and value of each index entry of a note; the value holds what a listing shows."""
    note_id = record["note_id"]
    shown = {"note_id": note_id, "title": record["title"][:MAX_TITLE_CHARACTERS]}
    entries: dict[bytes, Json] = {
        metadata_keys.source_key(record["source_type"], note.event.timestamp, note_id): {
            **shown,
            "event_id": record["event_id"],
        }
    }
    for entity in record["entities"]:
        entries[metadata_keys.entity_key(entity["type"], entity["text"], note_id)] = {**shown, **entity}
    for concept in record["concepts"]:
        # The best score comes first, and stays when another concept folds to the same key.
        entries.setdefault(metadata_keys.concept_key(concept["text"], note_id), {**shown, **concept})
    return entries


def changes(newest: Iterable[Note], stored: Mapping[str, bytes | None]) -> tuple[dict[bytes, bytes], set[bytes]]:
    """Return what to put and which keys to delete, so that the store holds exactly these versions.

    `stored` has the record of every note as the store holds it now, or None. Index entries that a record lists and
    its new version lacks are deleted; a deleted note goes with its record and all its entries. The results of a
    text are such an entry: a note has those of its newest version. Two notes of one text may share them, and the
    one that changes first takes them along, which costs the other a computation.
    """
    puts: dict[bytes, bytes] = {}
    stale: set[bytes] = set()
    stays: set[bytes] = set()
    for note in newest:
        note_id = note.event.note_id
        before = stored.get(note_id)
        held = set() if before is None else _keys_of(orjson.loads(before))
        stale |= held
        if note.event.deleted:
            if before is not None:
                stale.add(metadata_keys.note_key(note_id))
            continue
        record = record_of(note)
        entries = index_entries(record, note)
        record["index_keys"] = [key.decode() for key in entries]
        results = results_entry(note)
        if results is not None:
            key, value = results
            record["result_key"] = note.result_key
            if note.reused and key in held:
                # It is there as it was read: most of what a replay would write.
                stays.add(key)
            else:
                puts[key] = value
        puts[metadata_keys.note_key(note_id)] = encode(record)
        puts.update((key, encode(value)) for key, value in entries.items())
    return puts, stale - puts.keys() - stays


def _keys_of(record: Json) -> set[bytes]:
    """Return the keys of all that the store holds because of a record."""
    keys = {key.encode() for key in record["index_keys"]}
    # Records of earlier releases have no results.
    return keys | {metadata_keys.result_key(record["result_key"])} if record.get("result_key") else keys


def results_entry(note: Note) -> tuple[bytes, bytes] | None:
    """Return key and value of what enrichment made of a note's text; None when that is not to be kept."""
    value = encode_results(note) if note.result_key else None
    return None if value is None else (metadata_keys.result_key(note.result_key), value)


def encode(value: Json) -> bytes:
    """Write JSON in UTF-8; half a surrogate pair, which a hostile document may hold, becomes "?"."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_encodable(value))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
        case list():
            return [_encodable(item) for item in value]
        case _:
            return value
