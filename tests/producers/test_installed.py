"""READMEs of installed distributions as source items."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path

from producers.installed import installed_readmes

LONG = "A sentence of a real README. " * 20


def distribution(folder: Path, name: str, text: str, content_type: str | None = None) -> Distribution:
    path = folder / f"{name}-1.0.dist-info"
    path.mkdir(parents=True)
    header = f"Description-Content-Type: {content_type}\n" if content_type else ""
    (path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{header}\n{text}")
    return Distribution.at(path)


def test_this_machine_has_many_readmes_in_the_same_order_each_time() -> None:
    names = [item.identity for item in installed_readmes()]
    assert len(names) > 50
    assert names == sorted(set(names)) == [item.identity for item in installed_readmes()]
    assert [item.identity for item in installed_readmes(3)] == names[:3]


def test_the_declared_type_is_told_and_the_default_is_restructured_text(tmp_path: Path) -> None:
    found = [
        distribution(tmp_path, "Plain", LONG, "text/plain"),
        distribution(tmp_path, "Old_Name", LONG),
        distribution(tmp_path, "markdown", LONG, "text/markdown; charset=UTF-8; variant=GFM"),
        distribution(tmp_path, "odd", LONG, "application/x-odd"),
    ]
    assert {item.identity: item.content_type for item in installed_readmes(found=found)} == {
        "markdown": "text/markdown",
        "odd": "text/plain",
        "old-name": "text/x-rst",
        "plain": "text/plain",
    }


def test_empty_and_short_readmes_are_left_out_and_do_not_count(tmp_path: Path) -> None:
    found = [
        distribution(tmp_path, "a-empty", ""),
        distribution(tmp_path, "b-short", "UNKNOWN"),
        distribution(tmp_path, "c-long", LONG),
        distribution(tmp_path, "d-long", LONG),
    ]
    assert [item.identity for item in installed_readmes(1, found=found)] == ["c-long"]


def test_of_two_installations_the_first_on_the_path_is_told(tmp_path: Path) -> None:
    found = [distribution(tmp_path / "1", "same", "First. " + LONG), distribution(tmp_path / "2", "same", LONG)]
    (item,) = installed_readmes(found=found)
    assert item.content.startswith(b"First. ")
    assert item.metadata == {"distribution": "same", "version": "1.0"}
