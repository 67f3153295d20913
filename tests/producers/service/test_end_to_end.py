"""From a request to the tables: what is posted is processed, what is bad fails, and the guide's examples work."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from core.settings import Settings, load_settings
from pkm.running import run_flow
from served import Served
from sinks import iceberg_catalog

ROOT = Path(__file__).parents[3]
FOLLOWED_WITHIN_SECONDS = 10.0


@pytest.fixture
def caught_up(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a flow that ends when it has caught up."""
    monkeypatch.setenv("PKM_UNTIL_CAUGHT_UP", "1")
    monkeypatch.setenv("PKM_SNAPSHOT_SECONDS", "1")
    load_settings.cache_clear()
    return load_settings()


def state_when_it_is(served: Served, note_id: str, expected: str) -> dict[str, object]:
    """Wait until the service has seen the tables change: it looks every second."""
    deadline = time.monotonic() + FOLLOWED_WITHIN_SECONDS
    while (state := served.state(note_id))["state"] != expected and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state["state"] == expected, state
    return state


def test_a_note_is_accepted_then_processed_and_a_bad_file_failed(served: Served, caught_up: Settings) -> None:
    note = served.post_note(text="# Heading\n\nMarie met Niels in Paris.", title="Given title", identity="meeting")
    bad = served.post_file(b"\x00\x01\x02" * 100, "noise.bin")
    note_id, bad_id = note.json()["note_id"], bad.json()["note_id"]
    assert [served.state(each)["state"] for each in (note_id, bad_id)] == ["accepted", "accepted"]

    run_flow(caught_up, flow="knowledge", workers=1)
    processed = state_when_it_is(served, note_id, "processed")
    assert processed["event_id"] == note.json()["event_id"]
    assert processed["title"] == "Given title"
    failed = state_when_it_is(served, bad_id, "failed")
    assert failed["failure"] == {
        "step": "extract",
        "error": "UnsupportedFormat",
        "message": "binary content (it has NUL bytes) is not supported",
    }

    newer = served.post_note(text="# Heading\n\nThey met again.", identity="meeting").json()
    assert newer["note_id"] == note_id
    waiting = served.state(note_id)
    assert (waiting["state"], waiting["event_id"]) == ("accepted", newer["event_id"])
    run_flow(caught_up, flow="knowledge", workers=1)
    assert state_when_it_is(served, note_id, "processed")["event_id"] == newer["event_id"]
    (row,) = iceberg_catalog.scan(caught_up, "silver.notes").to_pylist()
    assert (row["note_id"], row["event_id"]) == (note_id, newer["event_id"])


def test_the_examples_of_the_guide_work(served: Served) -> None:
    guide = (ROOT / "docs" / "producers.md").read_text()
    (examples,) = [block for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "$URL" in block]
    environment = {**os.environ, "URL": served.url, "TOKEN": str(served.token), "NOTE_ID": ""}
    post = examples[: examples.index("# How far")]
    done = subprocess.run(
        ["bash", "-euc", post], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    note_ids = re.findall(r'"note_id":"([0-9a-f]{32})"', done.stdout)
    assert len(note_ids) == 2
    look = examples[examples.index("# How far") :]
    for note_id in note_ids:
        environment["NOTE_ID"] = note_id
        done = subprocess.run(
            ["bash", "-euc", look], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert '"state":"accepted"' in done.stdout
        assert '"status":"ready"' in done.stdout
