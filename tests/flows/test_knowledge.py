"""The shape of the main dataflow: its step ids are the recovery identity, its picture stands in the README."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STEPS = [
    "knowledge.kinesis",
    "knowledge.parse",
    "knowledge.dedupe",
    "knowledge.fetch",
    "knowledge.extract",
    "knowledge.chunk",
    "knowledge.embed",
    "knowledge.entities",
    "knowledge.concepts",
    "knowledge.windows",
    "knowledge.failures",
    "knowledge.bronze_notes",
    "knowledge.bronze_failures",
    "knowledge.silver_notes",
    "knowledge.silver_metrics",
    "knowledge.metadata",
    "knowledge.vectors",
    "knowledge.failure_rate",
]


def visualise() -> str:
    """What `python -m bytewax.visualize` draws, with no endpoint to reach and no model loaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PKM_"))}
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.visualize", "flows.knowledge:flow", "-o", "mermaid"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_step_ids_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.settings import Settings
    from flows import knowledge

    graph = knowledge.build(Settings())

    assert [step.step_id for step in graph.substeps] == STEPS


def test_the_readme_shows_the_flow_as_it_is() -> None:
    # Renderers lay a subgraph without outside edges on its side, 3,900 pixels wide; this line is all that is ours.
    heading = 'subgraph "knowledge (Dataflow)"\n'
    drawn = visualise().replace(heading, f"{heading}direction TB\n")

    assert f"```mermaid\n{drawn}\n```" in (REPOSITORY / "README.md").read_text()
