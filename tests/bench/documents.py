"""Real documents for benchmarks: the READMEs of installed packages, as the flow reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builders import event_of
from core.records import Document, FetchedEvent
from operators.extract import extract_batch
from operators.formats.process import Parsers
from producers.announce import SourceItem
from producers.installed import installed_readmes

__all__ = ["Readme", "notes", "readmes"]


@dataclass(frozen=True)
class Readme:
    """A document of the package `name`, with the text that the models read."""

    name: str
    document: Document

    @property
    def text(self) -> str:
        return self.document.text


def readmes(limit: int | None = None) -> list[Readme]:
    """Return the READMEs of installed packages by name, at most `limit`, with text extracted as in the flow."""
    return _extracted(list(installed_readmes(limit)))


def notes(folder: Path) -> list[Readme]:
    """Return the Markdown notes in `folder` by name, extracted in the same way."""
    return _extracted(
        [
            SourceItem(
                source_type="files",
                identity=path.stem,
                content=path.read_bytes(),
                content_type="text/markdown",
                metadata={},
            )
            for path in sorted(folder.glob("*.md"))
        ]
    )


def _extracted(items: Sequence[SourceItem]) -> list[Readme]:
    fetched = [
        FetchedEvent(event_of(note_id=item.identity, content_type=item.content_type), item.content) for item in items
    ]
    parsers = Parsers(seconds=60)
    try:
        outcomes = extract_batch(fetched, parsers=parsers)
    finally:
        parsers.close()
    return [
        Readme(item.identity, outcome)
        for item, outcome in zip(items, outcomes, strict=True)
        if isinstance(outcome, Document) and outcome.text.strip()
    ]
