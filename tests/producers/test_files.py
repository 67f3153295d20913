"""Files as source items: the same identity on every machine, and what is left alone with the reason."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.errors import MissingError, SettingsError
from core.settings import Settings
from producers.announce import SourceItem
from producers.files import files

SMALL = Settings().model_copy(update={"max_object_bytes": 1000})


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    root = tmp_path / "vault"
    (root / "topics" / ".git").mkdir(parents=True)
    (root / "topics" / ".git" / "config").write_text("hidden")
    (root / ".hidden.md").write_text("hidden")
    (root / "b.md").write_text("# B")
    (root / "a.html").write_text("<h1>A</h1>")
    (root / "topics" / "streams.rst").write_text("Streams")
    return root


def read(*paths: Path | str, stdin: bytes = b"", **options: Any) -> tuple[list[SourceItem], dict[str, str]]:
    left_alone: dict[str, str] = {}
    found = files(
        paths, settings=SMALL, on_left_alone=left_alone.__setitem__, standard_input=io.BytesIO(stdin), **options
    )
    return list(found), left_alone


def identities(*paths: Path | str, **options: Any) -> list[str]:
    return [item.identity for item in read(*paths, **options)[0]]


def test_a_folder_gives_all_below_it_in_order_without_hidden_names(vault: Path) -> None:
    items, left_alone = read(vault)
    assert [(item.identity, item.content_type, item.content) for item in items] == [
        ("vault/a.html", "text/html", b"<h1>A</h1>"),
        ("vault/b.md", "text/markdown", b"# B"),
        ("vault/topics/streams.rst", "text/x-rst", b"Streams"),
    ]
    assert left_alone == {}


def test_the_identity_is_the_same_wherever_the_folder_lies(vault: Path, tmp_path: Path) -> None:
    shutil.copytree(vault, tmp_path / "elsewhere" / "deep" / "vault")
    assert identities(vault) == identities(tmp_path / "elsewhere" / "deep" / "vault")


def test_the_identity_is_the_same_from_any_working_directory(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = identities(vault)
    monkeypatch.chdir(vault)
    assert identities(".") == expected
    monkeypatch.chdir(vault / "topics")
    assert identities("..") == expected


def test_a_file_by_itself_is_the_same_note_as_from_its_folder(vault: Path) -> None:
    assert identities(vault / "b.md") == ["vault/b.md"]


def test_a_decomposed_name_is_the_same_note_as_a_composed_one(tmp_path: Path) -> None:
    composed, decomposed = tmp_path / "1" / "v", tmp_path / "2" / "v"
    for folder, name in ((composed, "caf\u00e9.md"), (decomposed, "cafe\u0301.md")):
        folder.mkdir(parents=True)
        (folder / name).write_text("x")
    assert identities(composed) == identities(decomposed) == ["v/caf\u00e9.md"]


def test_a_name_that_is_not_utf_8_is_read(vault: Path) -> None:
    Path(os.fsdecode(os.fsencode(vault) + b"/\xff.md")).write_text("x")
    assert "vault/\\xff.md" in identities(vault)


def test_globs_reach_any_depth_and_leave_hidden_names_alone(vault: Path) -> None:
    assert identities(f"{vault}/**/*.rst") == ["vault/topics/streams.rst"]
    assert identities(f"{vault}/*.md") == ["vault/b.md"]


def test_a_path_given_twice_is_read_once(vault: Path) -> None:
    items, left_alone = read(vault, vault / "b.md", f"{vault}/**/*")
    assert len(items) == 3
    assert left_alone == {}


def test_two_files_of_the_same_identity_are_not_mixed_up(vault: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "vault"
    other.mkdir(parents=True)
    (other / "b.md").write_text("another note")
    items, left_alone = read(vault, other)
    assert [item.content for item in items if item.identity == "vault/b.md"] == [b"# B"]
    assert "same identity vault/b.md" in left_alone[str(other / "b.md")]


def test_a_link_that_leaves_the_folder_is_left_alone_and_reported(vault: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.md").write_text("secret")
    (vault / "file.md").symlink_to(tmp_path / "secret" / "key.md")
    (vault / "folder").symlink_to(tmp_path / "secret")
    (vault / "inside.md").symlink_to(vault / "b.md")
    (vault / "loop").symlink_to(vault)
    items, left_alone = read(vault, f"{vault}/**/*.md")
    assert len(items) == 3
    assert {str(vault / "file.md"), str(vault / "folder")} <= set(left_alone)
    assert all("link that leaves" in reason for reason in left_alone.values())


def test_a_link_that_is_given_by_itself_is_followed(vault: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(vault)
    assert identities(tmp_path / "link") == identities(vault)


def test_what_can_not_be_read_is_left_alone_and_the_rest_is_given(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(vault / "pipe")
    (vault / "big.md").write_bytes(bytes(1001))
    (vault / "fits.md").write_bytes(bytes(1000))
    real = os.open

    # As root, which may read anything, the tests can't take a permission away.
    def refused(path: Path, flags: int) -> int:
        if Path(path).name == "a.html":
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr("producers.files.os.open", refused)
    items, left_alone = read(vault)
    assert [item.identity for item in items] == ["vault/b.md", "vault/fits.md", "vault/topics/streams.rst"]
    assert left_alone == {
        str(vault / "a.html"): "can't be read: Permission denied",
        str(vault / "big.md"): "is larger than 1,000 bytes (PKM_MAX_OBJECT_BYTES)",
        str(vault / "pipe"): "is no regular file",
    }


def test_standard_input_is_a_note_named_after_its_content() -> None:
    (first,), _ = read("-", stdin=b"a thought")
    (again,), _ = read("-", stdin=b"a thought")
    (other,), _ = read("-", stdin=b"another")
    assert first.content == b"a thought"
    assert first.identity == again.identity != other.identity
    assert read("-", stdin=bytes(1001)) == ([], {"-": "is larger than 1,000 bytes (PKM_MAX_OBJECT_BYTES)"})


@pytest.mark.parametrize("path", ["no/such/file.md", "no/such/*.md"])
def test_a_path_that_is_not_there_is_named_before_the_first_item(path: str, vault: Path) -> None:
    with pytest.raises(MissingError, match="no/such/"):
        files([vault, path], settings=SMALL)


def test_metadata_tells_path_size_and_time(vault: Path) -> None:
    os.utime(vault / "b.md", (0, 0))
    (item,), _ = read(vault / "b.md")
    assert item.metadata == {"path": "vault/b.md", "size": "3", "mtime": "1970-01-01T00:00:00+00:00"}
    os.utime(vault / "b.md", (0, 300_000_000_000))
    if (vault / "b.md").stat().st_mtime > 253_402_300_799:  # the end of the calendar, where the file system has more
        assert "mtime" not in read(vault / "b.md")[0][0].metadata


def test_folders_that_only_share_a_name_are_told_apart_by_another_name(vault: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "vault"
    other.mkdir(parents=True)
    (other / "b.md").write_text("another note")
    assert identities(other, name="ann/vault") == ["ann/vault/b.md"]
    assert identities(other / "b.md", name="ann") == identities(f"{other}/*.md", name="ann") == ["ann/b.md"]
    assert identities(vault, name="vault") == identities(vault)


@pytest.mark.parametrize("name", ["", "/", "/ann", "..", "a/../b", "a\nb", "."])
def test_a_name_that_can_not_begin_an_identity_is_refused(vault: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="can't be the name of a folder"):
        files([vault], settings=SMALL, name=name)


def test_what_ignore_rules_leave_out_is_left_alone_unless_it_is_given_by_itself(vault: Path) -> None:
    (vault / ".gitignore").write_text("*.html\ndrafts/\n!a.html\n")
    (vault / "topics" / ".pkmignore").write_text("*.rst\n")
    (vault / "drafts").mkdir()
    (vault / "drafts" / "kept.md").write_text("draft")
    (vault / "c.html").write_text("<h1>C</h1>")
    expected = ["vault/a.html", "vault/b.md"]
    assert read(vault)[1] == {}
    assert identities(vault) == identities(f"{vault}/**/*") == expected
    assert identities(vault / "c.html") == ["vault/c.html"]
    assert identities(vault / "drafts") == ["drafts/kept.md"]
    assert len(identities(vault, ignore=False)) == 5


def test_folders_deeper_than_pythons_stack_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep"
    try:
        with monkeypatch.context() as patch:
            folder.mkdir()
            patch.chdir(folder)
            for _ in range(1200):
                Path("d").mkdir()
                os.chdir("d")
        (folder / "d" / "a.md").write_text("a")
        assert identities(folder) == ["deep/d/a.md"]
    finally:
        # Python's own way to remove it is not as deep, and would fail in the tests that come later.
        subprocess.run(["rm", "-rf", str(folder)], check=True)
