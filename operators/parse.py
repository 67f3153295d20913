"""Reads stream records into checked events; a record that can't be read becomes a Failure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import bytewax.operators as op
import orjson
from bytewax.dataflow import Stream, operator
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.records import Event, Failure, RawRecord, Redrive, note_identity
from core.telemetry import FAILURES

__all__ = ["MAX_RECORD_BYTES", "ParseOut", "events", "parse_record"]

STEP = "parse"
MAX_RECORD_BYTES = 10 * 1024 * 1024
MAX_KEY_BYTES = 1_024
MAX_METADATA_ENTRIES = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_MESSAGE_CHARACTERS = 500

_IDENTITY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_Identity = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
_SourceType = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
_Bucket = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}$")]
_ContentType = Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,256}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$")]
_Size = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class ParseOut:
    """The two streams that leave `events`."""

    events: Stream[Event]
    failures: Stream[Failure]


def _iso_8601(value: object) -> datetime:
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError("is not ISO 8601 text, such as 2026-11-23T08:00:00Z")
    try:
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is not an ISO 8601 time, such as 2026-11-23T08:00:00Z") from None


_Time = Annotated[datetime, BeforeValidator(_iso_8601)]


class _Redriven(BaseModel):
    """The mark that `pkm dlq redrive` adds to a record."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    attempt: Annotated[int, Field(ge=1, le=1_000_000)]
    arrival_time: _Time
    outdated: bool = False


class _Record(BaseModel):
    """The JSON object of a stream record (docs: the record's contract); fields that we don't know are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    event_id: _Identity
    source_type: _SourceType
    timestamp: _Time
    s3_key: str = ""
    content_size: _Size = 0
    metadata: dict[str, str] = Field(default_factory=dict)
    bucket: _Bucket | None = None
    content_type: _ContentType | None = None
    content_sha256: _Sha256 | None = None
    note_id: _Identity | None = None
    deleted: bool = False
    metadata_sha256: _Sha256 | None = None
    redriven: _Redriven | None = None

    @field_validator("s3_key")
    @classmethod
    def _s3_key_is_usable(cls, value: str) -> str:
        if len(value.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"is longer than {MAX_KEY_BYTES} bytes")
        if _CONTROL.search(value):
            raise ValueError("has control characters")
        if value.startswith("/") or ".." in value.split("/"):
            raise ValueError('begins with "/" or has a ".." segment')
        return value

    @field_validator("metadata", mode="before")
    @classmethod
    def _metadata_is_text(cls, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        if len(value) > MAX_METADATA_ENTRIES:
            raise ValueError(f"has more than {MAX_METADATA_ENTRIES} entries")
        texts = {key: _as_text(item) for key, item in value.items() if item is not None}
        if sum(len(key.encode()) + len(text.encode()) for key, text in texts.items()) > MAX_METADATA_BYTES:
            raise ValueError(f"is larger than {MAX_METADATA_BYTES // 1024} kB")
        if any("\x00" in key or "\x00" in text for key, text in texts.items()):
            raise ValueError("has NUL characters")
        return texts

    @model_validator(mode="after")
    def _only_a_deletion_has_no_object(self) -> _Record:
        if not self.s3_key and not self.deleted:
            raise ValueError("s3_key is missing, and the record is not a deletion")
        return self


@operator
def events(
    step_id: str,  # noqa: ARG001 - the engine reads it
    records: Stream[RawRecord],
    *,
    bucket: str,
) -> ParseOut:
    """Read every record; order is kept, and each record leaves as one event or one failure.

    A record that names no bucket means `bucket`. Stateless; never raises for a record.
    """

    def parse_batch(batch: list[RawRecord]) -> list[Event | Failure]:
        now = datetime.now(UTC)
        return [_counted(parse_record(record, bucket=bucket, now=now)) for record in batch]

    outcomes = op.flat_map_batch("parse", records, parse_batch)
    split = op.branch("split", outcomes, lambda outcome: isinstance(outcome, Event))
    return ParseOut(cast("Stream[Event]", split.trues), cast("Stream[Failure]", split.falses))


def parse_record(record: RawRecord, *, bucket: str, now: datetime) -> Event | Failure:
    """Return the event that `record` announces, or the Failure that says why there is none (as of `now`)."""
    if len(record.data) > MAX_RECORD_BYTES:
        return _failure(record, now, "TooLarge", f"the record is larger than {MAX_RECORD_BYTES // 1024**2} MiB")
    try:
        value = orjson.loads(record.data)
    except orjson.JSONDecodeError as error:
        return _failure(record, now, "NotJson", f"the record is not JSON (byte {error.pos})")
    if not isinstance(value, dict):
        return _failure(record, now, "NotAnObject", "the record is JSON, but not an object")
    try:
        # null counts as missing.
        fields = _Record.model_validate({name: item for name, item in value.items() if item is not None})
    except ValidationError as error:
        return _failure(record, now, "InvalidRecord", _problems(error), value)
    return Event(
        event_id=fields.event_id,
        note_id=fields.note_id or _derived_note_id(fields),
        source_type=fields.source_type,
        bucket=fields.bucket or bucket,
        s3_key=fields.s3_key,
        content_type=fields.content_type,
        content_size=fields.content_size,
        content_sha256=fields.content_sha256.lower() if fields.content_sha256 else None,
        metadata=fields.metadata,
        timestamp=fields.timestamp,
        deleted=fields.deleted,
        record=record,
        redrive=Redrive(fields.redriven.attempt, fields.redriven.arrival_time) if fields.redriven else None,
        outdated=fields.redriven.outdated if fields.redriven else False,
        metadata_sha256=fields.metadata_sha256.lower() if fields.metadata_sha256 else None,
    )


def _derived_note_id(fields: _Record) -> str:
    identity = fields.metadata.get("path") or fields.metadata.get("url")
    if not identity:
        return fields.event_id
    repository = fields.metadata.get("repo")
    return note_identity(fields.source_type, f"{repository}/{identity}" if repository else identity)


def _as_text(value: Any) -> str:
    # The seed's metadata is a free mapping, so what is not text is kept as the JSON it came as.
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise ValueError("is nested too deep") from None


def _problems(error: ValidationError) -> str:
    details = (
        ": ".join(part for part in (".".join(str(name) for name in detail["loc"]), detail["msg"]) if part)
        for detail in error.errors(include_input=False, include_url=False)[:5]
    )
    return "; ".join(details).replace("Value error, ", "")[:MAX_MESSAGE_CHARACTERS]


def _failure(
    record: RawRecord, now: datetime, error: str, message: str, value: Mapping[str, object] | None = None
) -> Failure:
    event_id = (value or {}).get("event_id")
    s3_key = (value or {}).get("s3_key")
    return Failure(
        step=STEP,
        error=error,
        message=message,
        record=record,
        failed_at=now,
        # Named as far as they can be trusted, so that a person can find the producer.
        event_id=event_id if isinstance(event_id, str) and _IDENTITY.fullmatch(event_id) else None,
        s3_key=s3_key
        if isinstance(s3_key, str) and len(s3_key) <= MAX_KEY_BYTES and not _CONTROL.search(s3_key)
        else None,
    )


def _counted(outcome: Event | Failure) -> Event | Failure:
    if isinstance(outcome, Failure):
        FAILURES.labels(step=outcome.step).inc()
    return outcome
