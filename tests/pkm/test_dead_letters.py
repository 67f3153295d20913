"""Dead letters: what is listed, what is shown, and that a redriven record counts once everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from core.errors import MissingError, SettingsError
from core.records import Redrive
from pkm.cli import app
from pkm.dead_letters import Selection, marked, read_position, redrive, show_letter
from sinks import slatedb

ALL = Selection()
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@pytest.mark.thorough
@pytest.mark.timeout(180)
def test_a_redriven_record_that_succeeds_counts_once_everywhere(world: Any) -> None:
    good = world.record("good.md", b"# Good\n")
    missing = world.record("missing.md", b"# Missing\n", stored=False)
    still = world.record("still.md", b"# Still missing\n", stored=False)
    bad = b"this is not JSON {"
    world.send(good, missing, still, bad)
    world.run()

    listed = world.letters()
    assert {row["step"] for row in listed} == {"parse", "fetch"}
    assert {row["state"] for row in listed} == {"open"}
    assert all("payload" not in row for row in listed)
    assert [row["event_id"] for row in world.letters(Selection(step="fetch", error="TooLarge"))] == []
    assert len(world.letters(Selection(since=listed[0]["failed_at"]))) < 3
    assert len(world.letters(Selection(until=listed[-1]["failed_at"]))) == 0
    assert len(world.letters(Selection(since=datetime.now(UTC) - timedelta(minutes=5)))) == 3

    # Nothing is sent by a dry run, and twice at the same time counts once.
    world.store(missing["s3_key"], b"# Missing\n")
    planned = redrive(world.settings, ALL, dry_run=True)
    assert len(planned.sent) == 2
    assert planned.skipped == {"the parser still refuses it": 1}
    assert len(world.letters()) == 3
    assert redrive(world.settings, Selection(step="fetch")).sent == planned.sent
    (again, _) = (letter for letter in planned.sent)
    redrive(world.settings, Selection(ids=planned.sent))
    assert [row["step"] for row in world.letters()] == ["parse"]
    states = {row["event_id"]: row["state"] for row in world.letters(everything=True)}
    assert states[missing["event_id"]] == "redriven"
    assert redrive(world.settings, ALL).skipped["on the stream again already"] == 2
    world.run()

    both = sorted([good["event_id"], missing["event_id"]])
    assert world.bronze() == world.counted() == both
    assert sorted(world.silver().values()) == both
    assert slatedb.count_notes(world.settings) == 2
    states = {row["event_id"]: row["state"] for row in world.letters(everything=True) if row["event_id"]}
    assert states[missing["event_id"]] == "stored"
    # The other one failed again: as a letter of its own, and only once for the two that were sent.
    (failed_again,) = world.letters(Selection(step="fetch"))
    assert failed_again["event_id"] == still["event_id"]
    assert failed_again["id"] not in planned.sent
    assert len(world.table("bronze.failures")) == 4

    # The second attempt of it succeeds, and what is stored can't be doubled.
    world.store(still["s3_key"], b"# Still missing\n")
    assert redrive(world.settings, Selection(ids=(still["event_id"],))).sent == (failed_again["id"],)
    world.run()
    three = sorted([*both, still["event_id"]])
    assert redrive(world.settings, Selection(ids=(still["event_id"], again))).skipped["already stored"] >= 1
    world.run()
    assert world.bronze() == world.counted() == three
    assert sorted(world.silver().values()) == three
    assert [row["step"] for row in world.letters()] == ["parse"]


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_a_redrive_brings_no_older_version_of_a_note_back(world: Any) -> None:
    old = world.record("note.md", b"# Old\n", stored=False)
    new = world.record("note.md", b"# New\n")
    world.send(old, new)
    world.run()
    assert world.silver() == {new["note_id"]: new["event_id"]}

    world.store(old["s3_key"], b"# Old\n")
    assert len(redrive(world.settings, ALL).sent) == 1
    world.run()

    assert world.silver() == {new["note_id"]: new["event_id"]}
    assert world.bronze() == world.counted() == sorted([old["event_id"], new["event_id"]])
    note = slatedb.get_note(world.settings, new["note_id"])
    assert note is not None
    assert note["event_id"] == new["event_id"]


@pytest.mark.timeout(120)
def test_what_a_stranger_sent_is_shown_only_when_asked_for_and_bounded(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = b'{"event_id": "x", "secret": "\x1b[2J' + b"\xe2\x80\xae" + b"s" * 10_000 + b'"'
    world.send(hostile)
    world.run()
    (letter,) = world.letters()

    shown = show_letter(world.settings, letter["id"])
    assert shown["payload_bytes"] == len(hostile)
    assert shown["payload"].startswith('{"event_id": "x", "secret": "\\x1b[2J\\u202e')
    assert len(shown["payload"]) < 5000
    shard, _, number = letter["id"].partition(":")
    assert show_letter(world.settings, f"{int(shard.rpartition('-')[2])}:{number}") == shown
    with pytest.raises(MissingError, match="9:9"):
        show_letter(world.settings, "9:9")

    # Named by id it is sent as it is.
    assert redrive(world.settings, Selection(ids=(letter["id"],))).sent == (letter["id"],)
    world.run()
    assert [row["payload"] for row in world.table("bronze.failures")] == [hostile, hostile]

    # The command would have this process log to what it captures, which is closed afterwards.
    monkeypatch.setattr("pkm.options.configure_logging", lambda settings: None)

    def pkm(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    (row,) = orjson.loads(pkm("dlq", "ls", "--json").stdout)
    assert row["error"] == "NotJson"
    on_screen = pkm("dlq", "show", row["id"])
    assert on_screen.exit_code == 0, on_screen.output
    assert "\x1b" not in on_screen.stdout
    assert "secret" not in pkm("dlq", "ls").stdout
    assert orjson.loads(pkm("dlq", "redrive", "--all", "--dry-run", "--json").stdout)["sent"] == []
    assert pkm("dlq", "redrive").exit_code == 2
    assert isinstance(pkm("dlq", "show", "nothing").exception, MissingError)
    assert isinstance(pkm("dlq", "ls", "--since", "yesterday").exception, SettingsError)


@given(
    st.dictionaries(st.text(), JSON, min_size=1),
    st.integers(1, 1_000_000),
    st.datetimes(timezones=st.just(UTC)),
    st.booleans(),
    st.sampled_from([b"", b"\n", b"  "]),
)
def test_a_mark_changes_nothing_else_and_replaces_an_earlier_one(
    record: dict[str, Any], attempt: int, time: datetime, outdated: bool, space: bytes
) -> None:
    first = marked(orjson.dumps(record) + space, Redrive(attempt, time), outdated=outdated)
    second = marked(first + space, Redrive(attempt + 1, time), outdated=False)

    mark = {"attempt": attempt, "arrival_time": time.isoformat(), **({"outdated": True} if outdated else {})}
    assert orjson.loads(first) == {**record, "redriven": mark}
    assert orjson.loads(second) == {**record, "redriven": {"attempt": attempt + 1, "arrival_time": time.isoformat()}}
    assert second.count(b'"redriven":{"attempt"') == 1


def test_a_letter_can_be_named_by_the_number_of_its_shard() -> None:
    assert read_position("3:4966") == "shardId-000000000003:4966"
    assert read_position("shardId-000000000003:4966") == "shardId-000000000003:4966"
    assert read_position("an-event:id") == "an-event:id"
    assert read_position("0123") == "0123"
