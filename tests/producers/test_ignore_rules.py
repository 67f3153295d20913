"""Ignore rules leave out what git leaves out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from producers.ignore_rules import IgnoreRules

NAMES = ("a", "b", "foo", "foo.md", "a.txt", "b.log", "build", "docs", "b r")
PARTS = st.sampled_from((*NAMES, "*", "*.md", "**", "f*", "?", "[ab]", "foo.*", "\\a"))
RULES = st.builds(
    lambda negated, rooted, parts, folder: negated + rooted + "/".join(parts) + folder,
    st.sampled_from(("", "", "", "!")),
    st.sampled_from(("", "", "/")),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(("", "", "/")),
)
TREE = tuple(
    "/".join(parts)
    for parts in (
        ("a",),
        ("foo.md",),
        ("b.log",),
        ("docs", "a.txt"),
        ("docs", "build", "foo.md"),
        ("docs", "foo", "b", "a"),
        ("build", "a"),
        ("build", "docs", "b.log"),
        ("foo", "foo.md"),
        ("foo", "build", "b r"),
        ("b r", "a.txt"),
    )
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for path in TREE:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def ignored_by_git(root: Path) -> set[str]:
    done = subprocess.run(
        ["git", "-C", str(root), "check-ignore", "--stdin", "-z"],
        input="\0".join(TREE).encode(),
        capture_output=True,
        check=False,
    )
    return set(done.stdout.decode().split("\0")) - {""}


def ignored_by_us(root: Path) -> set[str]:
    rules = IgnoreRules(str(root), report=lambda path, reason: None)
    return {path for path in TREE if rules.ignores_any(str(root / path), is_folder=False)}


@example(above=["f*"], docs=["!*/"], foo=[])
@example(above=["foo/**/"], docs=[], foo=[])
@given(st.lists(RULES, max_size=5), st.lists(RULES, max_size=3), st.lists(RULES, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_rules_leave_out_what_git_leaves_out(
    repository: Path, above: list[str], docs: list[str], foo: list[str]
) -> None:
    for folder, rules in ((repository, above), (repository / "docs", docs), (repository / "foo", foo)):
        (folder / ".gitignore").write_text("\n".join(rules) + "\n")
    assert ignored_by_us(repository) == ignored_by_git(repository)


def test_our_own_file_has_the_last_word_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.md\n")
    (tmp_path / ".pkmignore").write_text("!keep.md\n")
    rules = IgnoreRules(str(tmp_path), report=lambda path, reason: None)
    assert rules.ignores(str(tmp_path / "a.md"), is_folder=False)
    assert not rules.ignores(str(tmp_path / "keep.md"), is_folder=False)


def test_a_rule_that_is_no_pattern_is_told_and_the_others_count(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbf*.md\n//\n!\n*.log\n\xff.txt\n")
    told: dict[str, str] = {}
    rules = IgnoreRules(str(tmp_path), report=told.__setitem__)
    found = [name for name in ("a.md", "a.log", "a.txt") if rules.ignores(str(tmp_path / name), is_folder=False)]
    assert found == ["a.md", "a.log"]
    assert told == {str(tmp_path / ".gitignore"): 'the rule "!" is no pattern'}


def test_rules_that_can_not_be_read_safely_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("*\n")
    (tmp_path / ".gitignore").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / ".pkmignore")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / ".gitignore").write_bytes(b"*\n" * 600_000)
    told: dict[str, str] = {}
    rules = IgnoreRules(str(tmp_path), report=told.__setitem__)
    assert not rules.ignores_any(str(tmp_path / "large" / "a"), is_folder=False)
    assert set(told) == {str(tmp_path / ".gitignore"), str(tmp_path / "large" / ".gitignore")}
