"""The OpenAPI document says what the service does: schemathesis sends what it allows and what it forbids."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import orjson

from core.layout import MAX_LONG_METADATA_BYTES
from producers.metadata import place
from producers.service import openapi, page
from producers.service.contract import MAX_NOTE_BYTES, MAX_TEXT_CHARACTERS, NoteIn
from producers.service.problems import KINDS
from served import Served

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def test_the_service_does_what_its_document_says(served: Served, tmp_path: Path) -> None:
    # As a scheme and not as a header, so that it also sends requests without.
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(f'[auth.openapi.token]\nbearer = "{served.token}"\n')
    command = [
        SCHEMATHESIS, "--config-file", configuration, "run", f"{served.url}/openapi.json", "--checks", "all",
        "--phases", "coverage,fuzzing,stateful", "--max-examples", "5", "--seed", "7",
        "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HOOKS.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 selected / 5 total" in done.stdout


def test_notes_at_their_longest_fit_the_limits_of_bytes() -> None:
    metadata = {f"{number:02d}".ljust(64, "x"): "\x01" * 2000 for number in range(20)}
    own = {"identity": "\U0001f4d3" * 256, "title": "\U0001f4d3" * 200, "session": "s" * 128, "agent": "a" * 32}
    place({**metadata, **own}, identity="note", own={})
    assert len(orjson.dumps({**metadata, **own})) < MAX_LONG_METADATA_BYTES
    text = "\U0001f4d3" * MAX_TEXT_CHARACTERS
    note = {"text": text, "metadata": dict.fromkeys(metadata, "📓" * 2000), **own}
    del note["agent"]
    NoteIn.model_validate(note)
    escaped = sum(12 if ord(character) > 0xFFFF else 6 for character in text) + 20 * (2000 * 12 + 70) + 8_000
    assert escaped < MAX_NOTE_BYTES


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attributes)
        self.links += [value for name in ("href", "src") if (value := found.get(name))]
        if identity := found.get("id"):
            self.ids.add(identity)


def test_the_reference_needs_no_script_and_nothing_from_elsewhere() -> None:
    references = References()
    references.feed(page.reference(openapi.document()))
    assert not references.tags & {"script", "img", "link", "iframe", "form"}
    assert set(references.links) - {"/openapi.json"} <= {f"#{identity}" for identity in references.ids}
    assert {kind.name for kind in KINDS} <= references.ids


def test_what_the_document_says_is_no_markup_in_the_reference() -> None:
    document = openapi.document()
    document["info"]["description"] = document["paths"]["/v1/notes"]["post"]["summary"] = "<script>alert(1)</script>"
    assert "<script" not in page.reference(document)


def test_every_problem_that_an_operation_has_is_in_the_document() -> None:
    documents = (openapi.document(), openapi.document(with_tokens=False))
    methods = [method for document in documents for method in document["paths"].values()]
    operations = [operation for each in methods for operation in each.values()]
    told = {int(status) for operation in operations for status in operation["responses"]}
    # Whatever is at no address has no operation, and neither has a method that an address lacks.
    assert {kind.status for kind in KINDS} - told == {405}
