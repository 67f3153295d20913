"""Repositories on this machine, whole or damaged: read as they lie there, and left as they are."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from random import Random

import pytest

from core.errors import PkmError, SourceError
from core.settings import Settings
from git_servers import BareRepository
from producers.git.local import LocalRepository
from producers.git.names import parse_location
from producers.git.tree import Selection

SETTINGS = Settings(max_object_bytes=1_000_000)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> BareRepository:
    made = BareRepository(tmp_path_factory.mktemp("local") / "notes.git")
    text = b"".join(b"line %d of a long text\n" % number for number in range(300))
    for version in range(4):
        made.commit({f"docs/{number}.md": text + b"%d %d\n" % (number, version) for number in range(6)})
    return made


def contents(path: Path) -> dict[str, bytes | None]:
    opened = LocalRepository(parse_location(str(path), settings=SETTINGS), settings=SETTINGS)
    try:
        commit = opened.commit(opened.tip(None))
        return {entry.path: content for entry, content in opened.contents(opened.entries(commit, Selection()))}
    finally:
        opened.close()


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("packed", [False, True])
def test_loose_and_packed_objects_are_read_and_nothing_is_changed(
    packed: bool, repository: BareRepository, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.git"
    shutil.copytree(repository.path, copy)
    if packed:
        repository.git("repack", "-adq", folder=copy)
        repository.git("pack-refs", "--all", folder=copy)
    else:
        for pack in [*copy.glob("objects/pack/*.pack")]:
            moved = pack.rename(tmp_path / pack.name)
            pack.with_suffix(".idx").unlink()
            repository.git("unpack-objects", "-q", content=moved.read_bytes(), folder=copy)
    before = snapshot(copy)
    assert contents(copy) == repository.files
    assert snapshot(copy) == before


def test_a_clone_that_borrows_its_objects_and_one_with_a_working_tree_are_read(
    repository: BareRepository, tmp_path: Path
) -> None:
    repository.git("clone", "-q", "--shared", str(repository.path), str(tmp_path / "work"))
    (tmp_path / "work" / "docs" / "0.md").write_text("not committed")
    assert contents(tmp_path / "work") == repository.files


def test_a_shallow_copy_is_read_and_a_commit_that_it_has_not_is_named(
    repository: BareRepository, tmp_path: Path
) -> None:
    repository.git("clone", "-q", "--depth=1", repository.path.as_uri(), str(tmp_path / "work"))
    assert contents(tmp_path / "work") == repository.files
    opened = LocalRepository(parse_location(str(tmp_path / "work"), settings=SETTINGS), settings=SETTINGS)
    with pytest.raises(PkmError, match="may be a shallow or partial copy"):
        opened.commit(repository.commits[0])
    opened.close()


def test_a_loose_object_that_inflates_without_end_is_left_alone(tmp_path: Path) -> None:
    made = BareRepository(tmp_path / "loose.git")
    blob = made.git("hash-object", "-w", "--stdin", content=b"# A\n")
    tree = made.git("mktree", content=f"100644 blob {blob}\ta.md\n".encode())
    commit = made.git("-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", tree, "-m", "m")
    made.git("update-ref", "refs/heads/main", commit)
    assert contents(made.path) == {"a.md": b"# A\n"}
    path = made.path / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.write_bytes(zlib.compress(b"blob 200000000\0" + bytes(200_000_000)))
    assert contents(made.path) == {"a.md": None}
    path.write_bytes(zlib.compress(b"blob 4\0" + bytes(200_000_000)))
    with pytest.raises(SourceError, match="is not whole"):
        contents(made.path)


def test_whatever_is_damaged_ends_in_an_error_of_ours_or_hurts_nobody(
    repository: BareRepository, tmp_path: Path
) -> None:
    random = Random(7)
    whole = tmp_path / "whole.git"
    shutil.copytree(repository.path, whole)
    repository.git("repack", "-adq", folder=whole)
    names = [file.relative_to(whole) for file in whole.rglob("*") if file.is_file() and "hooks" not in file.parts]
    errors = 0
    for number in range(120):
        copy = tmp_path / f"{number}.git"
        shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("hooks"))
        file = copy / random.choice(names)
        file.chmod(0o644)
        content = bytearray(file.read_bytes())
        if random.random() < 0.3:
            content = content[: random.randrange(len(content) + 1)]
        else:
            for _ in range(random.randint(1, 20)):
                if content:
                    content[random.randrange(len(content))] = random.randrange(256)
        file.write_bytes(content)
        try:
            contents(copy)
        except PkmError:
            errors += 1
        shutil.rmtree(copy)
    assert errors > 10
