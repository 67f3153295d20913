"""Dead letters: what failed and still waits for somebody, and how it is put on the stream again.

bronze.failures keeps every failure as history; a ledger on S3 says which of them were redriven. A redriven record
carries a mark that counts its attempts; attempt N + 1 follows a failure of attempt N and nothing else. The duplicate
filter passes each attempt once, so at most one of them ends in the tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import orjson
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, EqualTo, GreaterThanOrEqual, LessThan

from core.errors import MissingError, SettingsError
from core.records import Event, Position, RawRecord, Redrive
from core.settings import Settings
from core.visible import visible
from operators.parse import parse_record
from pkm.redrive_ledger import read_ledger, write_ledger
from producers.announce import announce_again
from sinks import iceberg_catalog

__all__ = ["Redriven", "Selection", "list_letters", "marked", "read_position", "read_time", "redrive", "show_letter"]

FAILURES, NOTES = "bronze.failures", "bronze.notes"
# One call to Kinesis; a crash repeats at most what the ledger does not have yet.
LETTERS_PER_CALL = 500
RECORD_BYTES = 1024 * 1024
MARK_BYTES = 256
SHOWN_BYTES = 4_096

Row = dict[str, Any]

_PLACE = ("shard_id", "sequence_number", "subsequence_number")
_LISTED = ("event_id", "step", "error", "message", *_PLACE, "s3_key", "failed_at")
_MARK = re.compile(rb',"redriven":\{[^{}]*\}\}$')


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters are meant: those that fit everything that is named. `ids` are letter or event ids."""

    ids: tuple[str, ...] = ()
    step: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def row_filter(self) -> BooleanExpression:
        """What the table is asked for; `ids` are looked for afterwards."""
        wanted: list[BooleanExpression] = []
        if self.step:
            wanted.append(_compare(EqualTo, "step", self.step))
        if self.error:
            wanted.append(_compare(EqualTo, "error", self.error))
        if self.since:
            wanted.append(_compare(GreaterThanOrEqual, "failed_at", self.since.isoformat()))
        if self.until:
            wanted.append(_compare(LessThan, "failed_at", self.until.isoformat()))
        return reduce(And, wanted) if wanted else AlwaysTrue()

    def names(self, row: Row) -> bool:
        """Tell whether a row is among the ids, if there are any."""
        return not self.ids or row["event_id"] in self.ids or letter_id(row) in map(read_position, self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """What a redrive did: ids that were sent (or would be), and of those that were not, how many for which reason."""

    sent: tuple[str, ...]
    skipped: dict[str, int]
    dry_run: bool


def _compare(operation: Any, column: str, value: str) -> BooleanExpression:
    # The library's own annotations know only its internal, keyword form.
    comparison: BooleanExpression = operation(column, value)
    return comparison


def letter_id(row: Row) -> str:
    """Name a dead letter after its place in the stream: `SHARD:SEQUENCE`, or `SHARD:SEQUENCE.SUB` in an aggregate."""
    sub = f".{row['subsequence_number']}" if row["subsequence_number"] else ""
    return f"{row['shard_id']}:{row['sequence_number']}{sub}"


def read_position(text: str) -> str:
    """Return the full id of a letter; the shard may be given by its number alone, as in `3:4966`."""
    shard, colon, place = text.partition(":")
    return f"shardId-{int(shard):012d}:{place}" if colon and shard.isdecimal() and len(shard) <= 12 else text


def read_time(text: str | None) -> datetime | None:
    """Read an ISO 8601 time, UTC unless it has an offset. Raises SettingsError for anything else."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f'"{text}" is not an ISO 8601 time, such as 2026-11-23T08:00:00Z') from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def list_letters(
    settings: Settings, selection: Selection, *, everything: bool = False, limit: int | None = None
) -> list[Row]:
    """List dead letters, newest first, without their payload.

    `state` is `open`; with `everything` also `stored` (bronze.notes has the event by now, or had it at once and
    only its window missed it) and `redriven` (on the stream again; if it fails again, that is a letter of its own).

    Raises MissingError for ids that no letter has, and before `pkm init`; UnreachableError.
    """
    rows = _rows(settings, selection, columns=_LISTED)
    stored, ledger = _stored(settings, {row["event_id"] for row in rows}), read_ledger(settings)
    listed = []
    for row in sorted(rows, key=lambda row: row["failed_at"], reverse=True):
        letter = letter_id(row)
        state = "stored" if row["event_id"] in stored else "redriven" if letter in ledger else "open"
        if everything or selection.ids or state == "open":
            listed.append(
                {
                    "id": letter,
                    "event_id": row["event_id"],
                    "step": row["step"],
                    "error": row["error"],
                    "message": row["message"],
                    "failed_at": row["failed_at"],
                    "state": state,
                }
            )
    return listed[:limit]


def show_letter(settings: Settings, name: str) -> Row:
    """Return the newest dead letter of a letter or event id, with its payload: bounded, controls escaped.

    Raises MissingError when there is none, and before `pkm init`; UnreachableError.
    """
    selection = Selection(ids=(name,))
    newest = max(_rows(settings, selection), key=lambda row: row["failed_at"])
    listed = list_letters(settings, selection)
    payload: bytes = newest["payload"]
    shown = payload[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
    return {
        **listed[0],
        "s3_key": newest["s3_key"],
        "arrival_time": newest["arrival_time"],
        "redriven_at": read_ledger(settings).get(letter_id(newest)),
        "payload_bytes": len(payload),
        "payload": visible(shown, keep_lines=True) + ("…" if len(payload) > SHOWN_BYTES else ""),
    }


def redrive(
    settings: Settings,
    selection: Selection,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Redriven:
    """Put the payloads of the selected open letters on the stream again, oldest arrival first.

    Skipped are events that bronze.notes has by now, letters that are on the stream again already and those that the
    parser still refuses; the latter two are sent when they are named by id. A version that is older than what
    bronze.notes has of its note is marked as outdated: it is stored, the note stays as it is.

    Safe to repeat, also after a crash, and to run twice at the same time. Raises MissingError, UnreachableError.
    """
    found = _letters(_rows(settings, selection), settings)
    stored, ledger = _stored(settings, {letter.event_id for letter in found}), read_ledger(settings)
    skipped: Counter[str] = Counter()
    letters = []
    for letter in _newest_of_each_event(found, skipped):
        reason = _reason_to_skip(letter, stored=stored, ledger=ledger, named=bool(selection.ids))
        if reason:
            skipped[reason] += 1
        else:
            letters.append(letter)
    newest = _newest_arrivals(settings, {letter.event.note_id for letter in letters if letter.event})
    sent: list[str] = []
    for start in range(0, len(letters), LETTERS_PER_CALL):
        group = letters[start : start + LETTERS_PER_CALL]
        if not dry_run:
            announce_again(
                [(letter.partition_key, letter.again(newest)) for letter in group],
                settings=settings,
                on_progress=on_progress,
            )
            # Written afterwards: what a crash leaves out is sent again, as the same attempt, which passes only once.
            write_ledger(settings, [name for letter in group for name in letter.names])
        sent += [letter.name for letter in group]
    return Redriven(sent=tuple(sent), skipped=dict(skipped), dry_run=dry_run)


def marked(payload: bytes, redrive: Redrive, *, outdated: bool) -> bytes:
    """Return a record, a JSON object with at least one field, with the mark of an attempt in place of an earlier one.

    Every other byte stays as it was.
    """
    mark: dict[str, Any] = {"attempt": redrive.attempt, "arrival_time": redrive.arrival_time.isoformat()}
    if outdated:
        mark["outdated"] = True
    bare = _MARK.sub(b"}", payload.rstrip())
    # Of two fields with one name the last one counts, so a mark that somebody else wrote has no say.
    return bare[:-1].rstrip() + b',"redriven":' + orjson.dumps(mark) + b"}"


@dataclass(frozen=True, slots=True)
class _Letter:
    """A dead letter with its payload; `event` is what the parser makes of it now, None when it refuses it."""

    names: tuple[str, ...]
    event_id: str | None
    record: RawRecord
    event: Event | None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def arrival_time(self) -> datetime:
        """When the event first arrived."""
        return self.event.redrive.arrival_time if self.event and self.event.redrive else self.record.arrival_time

    @property
    def attempt(self) -> int:
        return self.event.redrive.attempt if self.event and self.event.redrive else 0

    @property
    def partition_key(self) -> str:
        return self.event.note_id if self.event else self.name

    def again(self, newest: Mapping[str, datetime]) -> bytes:
        """What is put on the stream; `newest` has the arrival of each note's newest stored version."""
        if self.event is None:
            return self.record.data
        outdated = newest.get(self.event.note_id, self.arrival_time) > self.arrival_time
        return marked(self.record.data, Redrive(self.attempt + 1, self.arrival_time), outdated=outdated)


def _letters(rows: Sequence[Row], settings: Settings) -> list[_Letter]:
    now = datetime.now(UTC)
    letters = []
    for row in rows:
        position = Position(row["shard_id"], int(row["sequence_number"]), row["subsequence_number"])
        record = RawRecord(row["payload"], "", row["arrival_time"], position)
        outcome = parse_record(record, bucket=settings.bucket, now=now)
        event = outcome if isinstance(outcome, Event) else None
        letters.append(_Letter((letter_id(row),), event.event_id if event else row["event_id"], record, event))
    return letters


def _newest_of_each_event(letters: Sequence[_Letter], skipped: Counter[str]) -> list[_Letter]:
    """Keep the last attempt of each event, in order of first arrival; what it stands for is redriven with it."""
    events: dict[str, _Letter] = {}
    for letter in sorted(letters, key=lambda letter: (letter.attempt, letter.record.arrival_time)):
        key = letter.event.event_id if letter.event else letter.name
        before = events.get(key)
        if before is not None:
            skipped["another failure of the same event"] += 1
        names = (*letter.names, *(before.names if before else ()))
        events[key] = _Letter(names, letter.event_id, letter.record, letter.event)
    return sorted(events.values(), key=lambda letter: letter.arrival_time)


def _reason_to_skip(
    letter: _Letter, *, stored: frozenset[str], ledger: Mapping[str, datetime], named: bool
) -> str | None:
    if letter.event_id in stored:
        return "already stored"
    if letter.event and len(letter.record.data) > RECORD_BYTES - MARK_BYTES:
        return "too large for the mark"
    if letter.name in ledger and not named:
        return "on the stream again already"
    if letter.event is None and not named:
        return "the parser still refuses it"
    return None


def _rows(settings: Settings, selection: Selection, *, columns: Sequence[str] | None = None) -> list[Row]:
    table = iceberg_catalog.scan(settings, FAILURES, columns=columns, row_filter=selection.row_filter)
    rows = [row for row in table.to_pylist() if selection.names(row)]
    found = {row["event_id"] for row in rows} | {letter_id(row) for row in rows}
    missing = [name for name in selection.ids if name not in found and read_position(name) not in found]
    if missing:
        raise MissingError(f"there is no dead letter {', '.join(missing)}: `pkm dlq ls --all` lists all")
    return rows


def _stored(settings: Settings, event_ids: set[str | None]) -> frozenset[str]:
    """Return which of the events bronze.notes has."""
    wanted = pa.array(event_ids - {None}, pa.string())
    if not len(wanted):
        return frozenset()
    column = iceberg_catalog.scan(settings, NOTES, columns=("event_id",)).column("event_id").cast(pa.string())
    return frozenset(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())


def _newest_arrivals(settings: Settings, note_ids: set[str]) -> dict[str, datetime]:
    """Return when the newest stored version of each note arrived."""
    if not note_ids:
        return {}
    table = iceberg_catalog.scan(settings, NOTES, columns=("note_id", "arrival_time"))
    wanted = pc.is_in(table.column("note_id").cast(pa.string()), value_set=pa.array(note_ids, pa.string()))
    newest = table.filter(wanted).group_by("note_id").aggregate([("arrival_time", "max")])
    return {row["note_id"]: row["arrival_time_max"] for row in newest.to_pylist()}
