"""What the engine was told is known before it starts, and only under `bytewax.run`."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from core import bytewax_run


@pytest.fixture
def under_bytewax_run(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec("bytewax.run", None)
    monkeypatch.setitem(sys.modules, "__main__", main)


def test_other_programs_have_no_options_and_one_process() -> None:
    assert bytewax_run.options() is None
    assert bytewax_run.processes() == 1


@pytest.mark.usefixtures("under_bytewax_run")
@pytest.mark.parametrize(
    ("arguments", "processes"),
    [([], 1), (["-w", "3"], 1), (["-i", "0", "-a", "one:1"], 1), (["-i", "1", "-a", "one:1;two:2;three:3"], 3)],
)
def test_processes_are_those_of_the_addresses(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], processes: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["bytewax.run", "flows.knowledge:flow", *arguments])
    assert bytewax_run.processes() == processes


@pytest.mark.usefixtures("under_bytewax_run")
def test_a_stateful_set_names_its_processes_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("flow-0.flow:9999\nflow-1.flow:9999\n")
    monkeypatch.setattr(sys, "argv", ["bytewax.run", "flows.knowledge:flow"])
    monkeypatch.setenv("BYTEWAX_POD_NAME", "flow-1")
    monkeypatch.setenv("BYTEWAX_STATEFULSET_NAME", "flow")
    monkeypatch.setenv("BYTEWAX_HOSTFILE_PATH", str(hosts))
    assert bytewax_run.processes() == 2
