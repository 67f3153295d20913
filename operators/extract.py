"""Turns fetched bytes into documents: format detection here, parsing in a child process with limits."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from urllib.parse import unquote, urlsplit

import bytewax.operators as op
from bytewax.dataflow import Stream, operator

from core.records import Document, Event, Failure, FetchedEvent
from core.settings import Settings
from core.telemetry import FAILURES
from operators.formats.detect import Format, decode, detect
from operators.formats.extracted import Extracted, Refusal, Refused, one_line
from operators.formats.plain_text import first_line
from operators.formats.process import Parsers, Task

__all__ = ["ExtractOut", "documents", "extract_batch"]

STEP = "extract"


@dataclass(frozen=True)
class ExtractOut:
    """The two streams that leave `documents`."""

    documents: Stream[Document]
    failures: Stream[Failure]


@operator
def documents(
    step_id: str,  # noqa: ARG001 - the engine reads it
    fetched: Stream[FetchedEvent],
    *,
    settings: Settings,
) -> ExtractOut:
    """Extract text, title, front matter, links, headers and language of every fetched event.

    Order is kept, and each event leaves as one document or one failure; a deletion leaves as an empty document.
    Stateless. Each worker has one child process for parsing, started with its first document; a document may take
    `settings.parse_seconds` of CPU time and 2 GiB of memory there; what it does to that process costs only itself.

    Raises ResourceError when the child process can't be started.
    """
    # Workers of one process are threads that share this function. Not threading.local: the engine's threads get a new
    # Python thread state, and so lose their locals, with every call.
    parsers: dict[int, Parsers] = {}

    def extract(batch: list[FetchedEvent]) -> list[Document | Failure]:
        worker = threading.get_ident()
        if worker not in parsers:
            parsers[worker] = Parsers(seconds=settings.parse_seconds)
        return extract_batch(batch, parsers=parsers[worker])

    outcomes = op.flat_map_batch("extract", fetched, extract)
    split = op.branch("split", outcomes, lambda outcome: isinstance(outcome, Document))
    return ExtractOut(cast("Stream[Document]", split.trues), cast("Stream[Failure]", split.falses))


def extract_batch(batch: list[FetchedEvent], *, parsers: Parsers) -> list[Document | Failure]:
    """Return a document or a failure for every event, in order."""
    outcomes: list[Document | Failure | None] = [None] * len(batch)
    tasks: list[tuple[int, Task]] = []
    for index, fetched in enumerate(batch):
        event = fetched.event
        if event.deleted:
            outcomes[index] = _document(event, "", Format.PLAIN, Extracted(text=""))
            continue
        try:
            content = decode(fetched.content, content_type=event.content_type)
        except Refusal as refusal:
            outcomes[index] = _failure(event, refusal.refused)
            continue
        detection = detect(
            content,
            content_types=(event.content_type, event.metadata.get("content_type")),
            names=_names(event),
        )
        tasks.append((index, (content, detection.format, detection.declared)))
    for (index, (content, document_format, _)), result in zip(
        tasks, parsers.read([task for _, task in tasks]), strict=True
    ):
        event = batch[index].event
        outcomes[index] = (
            _failure(event, result)
            if isinstance(result, Refused)
            else _document(event, content, document_format, result)
        )
    return [outcome for outcome in outcomes if outcome is not None]


def _document(event: Event, content: str, document_format: Format, extracted: Extracted) -> Document:
    return Document(
        event=event,
        content=content,
        content_type=document_format.value,
        text=extracted.text,
        title=_given_title(event)
        or extracted.title
        or ("" if event.deleted else _fallback_title(event, extracted.text)),
        frontmatter_json=extracted.frontmatter_json,
        links=extracted.links,
        headers=extracted.headers,
        language=extracted.language,
        word_count=len(extracted.text.split()),
        char_count=len(extracted.text),
    )


def _names(event: Event) -> tuple[str, ...]:
    # In the order in which they are trusted: a raw key often has no suffix at all.
    return (event.metadata.get("path", ""), _url_path(event.metadata.get("url", "")), event.s3_key)


def _url_path(url: str) -> str:
    # Only the path: the dots of the host are no suffix.
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _given_title(event: Event) -> str:
    # A source that names its notes knows better than a heading.
    return "" if event.deleted else one_line(event.metadata.get("title", ""))


def _fallback_title(event: Event, text: str) -> str:
    path, address, key = (one_line(unquote(name.rstrip("/").rpartition("/")[2])) for name in _names(event))
    return path or address or first_line(text) or key


def _failure(event: Event, refused: Refused) -> Failure:
    FAILURES.labels(step=STEP).inc()
    return Failure(
        step=STEP,
        error=refused.error,
        message=refused.message,
        record=event.record,
        failed_at=datetime.now(UTC),
        event_id=event.event_id,
        s3_key=event.s3_key,
    )
