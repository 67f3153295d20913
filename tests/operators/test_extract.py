"""Documents come out in order, one or one failure for each event, whatever is in them."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pebble import ProcessPool

from builders import event_of
from core.records import Document, Failure, FetchedEvent
from core.settings import Settings
from operators import extract
from operators.formats import process
from operators.formats.process import Parsers

ROOT = Path(__file__).parents[2]


def fetched(content: bytes, **changes: Any) -> FetchedEvent:
    return FetchedEvent(event_of(content_size=len(content), **changes), content)


def document_of(parsers: Parsers, one: FetchedEvent) -> Document:
    (outcome,) = extract.extract_batch([one], parsers=parsers)
    assert isinstance(outcome, Document), outcome
    return outcome


def failure_of(parsers: Parsers, one: FetchedEvent) -> Failure:
    (outcome,) = extract.extract_batch([one], parsers=parsers)
    assert isinstance(outcome, Failure), outcome
    assert (outcome.step, outcome.event_id, outcome.s3_key) == ("extract", one.event.event_id, one.event.s3_key)
    return outcome


def test_a_document_carries_the_original_the_text_and_its_counts(parsers: Parsers) -> None:
    content = (
        "---\r\ntitle: Notes\r\nday: 2026-11-23\r\n---\r\n"
        "# Grüße\r\n\r\nWords, more [words](a.md) and yet more of them.\r\n"
    )
    found = document_of(parsers, fetched(content.encode(), metadata={"path": "docs/a.md"}))
    text = "Grüße\n\nWords, more words and yet more of them."
    assert found == Document(
        event=found.event,
        content=content,
        content_type="text/markdown",
        text=text,
        title="Notes",
        frontmatter_json='{"title":"Notes","day":"2026-11-23"}',
        links=("a.md",),
        headers=("Grüße",),
        language="en",
        word_count=9,
        char_count=len(text),
    )


@pytest.mark.parametrize(
    ("content", "changes", "content_type", "title"),
    [
        (b"text", {"metadata": {"path": "docs/My Note.md"}}, "text/markdown", "My Note.md"),
        (b"<p>text</p>", {"metadata": {"url": "https://example.com/a%20b.html?x"}}, "text/html", "a b.html"),
        (b"<p>first</p>text", {"content_type": "text/html"}, "text/html", "first"),
        (b"[]", {"content_type": "application/json"}, "application/json", "0123"),
        (b'{"title": "T"}', {"s3_key": "a.json"}, "application/json", "T"),
        (b"Head\n====\n", {"metadata": {"path": "a.rst"}}, "text/plain", "Head"),
        (b"# H", {"metadata": {"content_type": "markdown"}}, "text/markdown", "H"),
        (b"text", {"metadata": {"url": "http://["}}, "text/plain", "text"),
    ],
)
def test_every_format_has_a_reader_and_every_document_a_title(
    parsers: Parsers, content: bytes, changes: dict[str, Any], content_type: str, title: str
) -> None:
    found = document_of(parsers, fetched(content, **changes))
    assert (found.content_type, found.title) == (content_type, title)


def test_a_deletion_is_an_empty_document_without_a_process() -> None:
    idle = Parsers(seconds=1)
    before = multiprocessing.active_children()
    found = document_of(idle, fetched(b"", deleted=True, s3_key="", metadata={"path": "a.md"}))
    assert (found.text, found.title, found.content, found.word_count, found.char_count) == ("", "", "", 0, 0)
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize(
    ("content", "content_type", "error"),
    [
        (b"", None, "EmptyDocument"),
        (b"caf\xe9", None, "NotUtf8"),
        (b"%PDF-1.4", "text/markdown", "UnsupportedFormat"),
        (b"---\na: [\n---\ntext", "text/markdown", "NotYaml"),
        (b"---\na: &a [x]\nb: [*a, *a]\n---\ntext", "text/markdown", "UnsafeYaml"),
        (b"[" * 100_000, "application/json", "TooDeep"),
        (b"<div>" * 40_000, "text/html", "TooDeep"),
        (b"text\n\n" + b"<div>" * 40_000, "text/markdown", "TooDeep"),
        (b">" * 10_000 + b"x", "text/markdown", "TooDeep"),
        (b"- " * 10_000 + b"x", "text/markdown", "TooDeep"),
        (b"[" * 50_000, "text/markdown", "TimedOut"),
        (b"*a _b " * 200_000, "text/markdown", "TimedOut"),
        (b"|a" * 500 + b"|\n" + b"|-" * 500 + b"|\n" + (b"|b" * 500 + b"|\n") * 3000, "text/markdown", "TimedOut"),
        (b"".join(b"<p><b id=%d>" % n for n in range(6000)), "text/html", "TooDeep"),
    ],
)
def test_a_hostile_document_is_a_failure_within_its_time(
    parsers: Parsers, content: bytes, content_type: str | None, error: str
) -> None:
    started = time.monotonic()
    found = failure_of(parsers, fetched(content, content_type=content_type))
    assert found.error == error
    assert time.monotonic() - started < 25
    # The next document is read as if nothing had been.
    assert document_of(parsers, fetched(b"fine")).text == "fine"


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode),
    content_type=st.sampled_from([None, "text/markdown", "text/html", "application/json", "text/plain", "x"]),
)
def test_no_bytes_make_it_raise(parsers: Parsers, content: bytes, content_type: str | None) -> None:
    (outcome,) = extract.extract_batch([fetched(content, content_type=content_type)], parsers=parsers)
    assert isinstance(outcome, Document | Failure)


def readmes() -> list[FetchedEvent]:
    found = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        text = metadata.get_payload() or metadata.get("Description") or ""
        if isinstance(text, str) and text.strip():
            found[metadata["Name"]] = (text, metadata.get("Description-Content-Type"))
    return [
        fetched(text.encode(errors="replace"), event_id=name, content_type=content_type)
        for name, (text, content_type) in sorted(found.items())
    ]


def run(events: list[FetchedEvent], *, workers: int) -> tuple[list[Document], list[Failure]]:
    found: list[Document] = []
    failures: list[Failure] = []
    flow = Dataflow("test")
    stream = op.input("in", flow, TestingSource(events, batch_size=20))
    if workers > 1:
        stream = op.redistribute("spread", stream)
    out = extract.documents("extract", stream, settings=Settings(parse_seconds=1))
    op.output("documents", out.documents, TestingSink(found))
    op.output("failures", out.failures, TestingSink(failures))
    if workers > 1:
        cluster_main(flow, [], 0, worker_count_per_proc=workers)
    else:
        run_main(flow)
    return found, failures


@pytest.mark.parametrize("workers", [1, 2])
def test_real_readmes_are_read_in_order_with_failures_among_them(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start_pool(**options: Any) -> Any:
        started.append(options)
        return ProcessPool(**options)

    monkeypatch.setattr(process, "ProcessPool", start_pool)
    good = readmes()[:60]
    bad = [fetched(b"\xff", event_id=f"bad-{number}") for number in range(3)]
    found, failures = run([*good[:30], *bad, *good[30:]], workers=workers)
    names = [document.event.event_id for document in found]
    wanted = [one.event.event_id for one in good]
    assert (names if workers == 1 else sorted(names)) == (wanted if workers == 1 else sorted(wanted))
    assert sorted(one.event_id or "" for one in failures) == ["bad-0", "bad-1", "bad-2"]
    assert all(document.text and document.title for document in found)
    # Starting a process takes a second: each worker does it once, not with every batch.
    assert len(started) == workers
    assert sum(document.language == "en" for document in found) > len(found) * 0.8


FLOW = """
import sys

import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSource

from core.settings import Settings
from operators import extract
from tests_extract_records import events

print("flow imported", file=sys.stderr)


def flow():
    graph = Dataflow("small")
    out = extract.documents("extract", op.input("in", graph, TestingSource(events())), settings=Settings())
    op.output("out", op.map("text", out.documents, lambda document: document.text), StdOutSink())
    return graph
"""


RECORDS = """
from datetime import UTC, datetime

from core.records import Event, FetchedEvent, Position, RawRecord


def events():
    now = datetime.now(UTC)
    record = RawRecord(b"", "key", now, Position("shard", 1))
    event = Event("e", "n", "files", "b", "k", None, 0, None, {}, now, False, record)
    return [FetchedEvent(event, f"document {number}".encode()) for number in range(5)]
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "small_flow.py").write_text(FLOW)
    (tmp_path / "tests_extract_records.py").write_text(RECORDS)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def test_under_bytewax_run_the_process_does_not_start_a_second_flow(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "small_flow:flow"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert done.stdout.splitlines() == [f"document {number}" for number in range(5)]
    assert done.stderr.splitlines() == ["flow imported"]


def test_front_matter_reaches_the_document_as_json(parsers: Parsers) -> None:
    found = document_of(
        parsers, fetched(b"---\ntags: [a, 1, true]\nn: {x: null}\n---\ntext", content_type="text/markdown")
    )
    assert orjson.loads(found.frontmatter_json) == {"tags": ["a", 1, True], "n": {"x": None}}
