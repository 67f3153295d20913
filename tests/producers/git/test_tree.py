"""What of a commit's tree is a document, and what a strange tree can't do."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SourceError
from producers.git.tree import Entry, Selection, chosen, left_alone, read_commit, time_of, walk

EVERYTHING = Selection()
ID = "a" * 40


@pytest.mark.parametrize(
    ("globs", "wanted", "unwanted"),
    [
        ((), {"a.md", "x/y/z.md"}, set()),
        (("docs",), {"docs/a.md", "docs/x/b.md"}, {"docs.md", "a/docs/b.md"}),
        (("docs/",), {"docs/a.md"}, {"docs.md"}),
        (("./docs/*.md",), {"docs/a.md", "docs/x/b.md"}, {"docs/a.txt", "a.md"}),
        (("*.md",), {"a.md", "x/y/z.md"}, {"a.txt"}),
        (("a.md", "x/*"), {"a.md", "x/y/z.md"}, {"b.md", "y/a.md"}),
        ((".",), {"a.md", "x/y/z.md"}, set()),
        (("no[te]es",), {"notes/a.md"}, {"noses/a.md"}),
    ],
)
def test_a_glob_means_what_it_means_to_git(globs: tuple[str, ...], wanted: set[str], unwanted: set[str]) -> None:
    selection = Selection(globs)
    assert {path for path in wanted | unwanted if selection.wants(path)} == wanted


PATHS = st.lists(st.text("ab*?[]/.x", max_size=6), max_size=3)
NAMES = st.lists(st.text("abx.", min_size=1, max_size=3), min_size=1, max_size=4)


@given(PATHS, NAMES)
def test_no_folder_is_passed_over_that_holds_something_wanted(globs: list[str], names: list[str]) -> None:
    selection = Selection(globs)
    if selection.wants("/".join(names)):
        for depth in range(1, len(names)):
            assert selection.may_hold("/".join(names[:depth]))


def test_hidden_folders_and_folders_without_anything_wanted_are_not_read() -> None:
    trees = {
        "root": [
            Entry(".git", "folder", "git"),
            Entry("docs", "folder", "docs"),
            Entry("src", "folder", "src"),
            Entry("a.md", "file", ID),
        ],
        "docs": [Entry("b.md", "file", ID), Entry("c.png", "file", ID)],
    }
    selection = Selection(["docs"])
    left: Counter[str] = Counter()
    files = chosen(walk("root", trees.__getitem__, selection=selection, most=99), selection=selection, left=left)
    assert list(files) == ["docs/b.md"]
    assert left == {"kind that is not read": 1}


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../../etc/passwd", "x" * 2_000])
def test_names_that_are_no_names_are_left_alone(name: str) -> None:
    tree = [Entry(name, "file", ID), Entry(name, "folder", ID)]
    left: Counter[str] = Counter()
    entries = walk("root", lambda _: tree, selection=EVERYTHING, most=9)
    assert chosen(entries, selection=EVERYTHING, left=left) == {}
    assert left == {"unusable name": 2}


def test_a_folder_that_holds_itself_has_an_end() -> None:
    with pytest.raises(SourceError, match="more than 5,000 files and folders"):
        for _ in walk("root", lambda _: [Entry("a", "folder", "root")] * 10, selection=EVERYTHING, most=5_000):
            pass


def test_names_that_differ_only_in_how_they_are_written_are_one_note() -> None:
    left: Counter[str] = Counter()
    entries = [Entry("cafe\u0301.md", "file", ID), Entry("caf\u00e9.md", "file", ID)]
    files = chosen(walk("r", lambda _: entries, selection=EVERYTHING, most=9), selection=EVERYTHING, left=left)
    assert list(files) == ["caf\u00e9.md"]
    assert left == {"same name as another": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"# text\n", None),
        ("\N{BYTE ORDER MARK}text".encode("utf-16"), None),
        (b"caf\xe9", None),
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"a\x00b", "binary"),
        (b"%PDF-1.7", "binary"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "pointer to large file storage"),
    ],
)
def test_content_that_is_no_text_is_told_apart(content: bytes, reason: str | None) -> None:
    assert left_alone(content) == reason


def test_a_commit_is_read_with_its_times_in_utc() -> None:
    content = (
        b"tree " + b"1" * 40 + b"\nparent " + b"2" * 40 + b"\nauthor A <a> B <b@c> 1700000000 +0530\n"
        b"committer D <d> 1700000060 -0800\ngpgsig x\n\nmessage\n"
    )
    commit = read_commit(ID, content)
    assert commit.tree == "1" * 40
    assert commit.authored_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert commit.committed_at == datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC)
    assert time_of(10**17) == time_of(-(10**17)) == datetime(1970, 1, 1, tzinfo=UTC)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"tree " + b"1" * 40 + b"\n" + tail))
def test_what_is_no_commit_is_refused(content: bytes) -> None:
    with pytest.raises(SourceError, match="can't be read"):
        read_commit(ID, content)
