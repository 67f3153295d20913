"""Git repositories over every way that there is: real servers on loopback, a stream and a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest

from announced import records
from core import aws
from core.errors import MissingError, SourceError
from core.records import note_identity
from core.settings import Settings
from git_runs import FILES, made, run
from git_servers import BareRepository, HttpBackend, git_daemon, http_backend, ssh_program

MANY_FILES = 300
WAYS = ("daemon", "http", "http, partial clone", "http, first protocol", "ssh", "local", "file")


def second_commit(repository: BareRepository) -> str:
    return repository.commit({"topics/0/0.md": b"# Changed\n", "new.md": b"# New\n"})


def third_commit(repository: BareRepository) -> str:
    moved = repository.files["topics/1/1.md"]
    return repository.commit({"topics/1/1.md": None, "topics/1/renamed.md": moved, "topics/2/2.md": None})


def keys(settings: Settings) -> list[str]:
    return [entry["path"] for page in obstore.list(aws.object_store(settings), "bronze/raw/") for entry in page]


@contextmanager
def reached(way: str, repository: BareRepository, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the repository's address, with a server behind it where the way needs one."""
    if way == "daemon":
        with git_daemon(repository.path.parent) as server:
            yield f"{server}/notes.git"
    elif way.startswith("http"):
        repository.git("config", "uploadpack.allowFilter", str(way.endswith("clone")).lower())
        with http_backend(repository.path.parent) as server:
            server.first_protocol = way.endswith("first protocol")
            yield f"{server.url}/notes.git"
    elif way == "ssh":
        ssh_program(folder)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield f"git@127.0.0.1:{repository.path}"
    else:
        yield str(repository.path) if way == "local" else repository.path.as_uri()


@pytest.mark.parametrize("way", WAYS)
def test_every_file_comes_once_then_only_changes_then_nothing(
    way: str, private: Settings, kinesis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = MANY_FILES if way in {"daemon", "http"} else FILES
    repository = made(tmp_path / "srv", files)
    with reached(way, repository, tmp_path, monkeypatch) as address:
        first = run(address, private)
        assert (first.announced, first.uploaded, first.deleted, first.unchanged) == (files, files, 0, 0)
        found = records(kinesis, private)
        assert sorted(record["metadata"]["path"] for record in found) == sorted(repository.files)
        assert len({record["note_id"] for record in found}) == files
        for record in found:
            stored = obstore.get(aws.object_store(private), record["s3_key"]).bytes()
            assert bytes(stored) == repository.files[record["metadata"]["path"]]

        second_commit(repository)
        third = third_commit(repository)
        changed = run(address, private)
        assert (changed.announced, changed.deleted, changed.unchanged) == (3, 2, files - 3)
        new = records(kinesis, private)[files:]
        told = {record["metadata"].get("path"): record for record in new if not record.get("deleted")}
        assert sorted(told) == ["new.md", "topics/0/0.md", "topics/1/renamed.md"]
        assert {record["metadata"]["commit"] for record in told.values()} == {third}
        gone = {record["note_id"] for record in new if record.get("deleted")}
        by_path = {record["metadata"]["path"]: record["note_id"] for record in found}
        assert gone == {by_path["topics/1/1.md"], by_path["topics/2/2.md"]}
        assert told["topics/0/0.md"]["note_id"] == by_path["topics/0/0.md"]

        objects = keys(private)
        again = run(address, private)
        assert (again.announced, again.deleted, again.compared) == (0, 0, "nothing new since the last run")
        assert keys(private) == objects
        assert len(records(kinesis, private)) == files + 5


def test_metadata_names_the_file_the_commit_and_the_blob(
    repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    run(str(repository.path), private, globs=["topics/0/0.md"])
    (record,) = records(kinesis, private)
    name = str(repository.path)
    assert record["metadata"] == {
        "path": "topics/0/0.md",
        "repo": name,
        "commit": repository.commits[0],
        "blob": repository.git("rev-parse", "main:topics/0/0.md"),
        "author_time": "2023-11-14T22:13:20+00:00",
    }
    assert record["content_type"] == "text/markdown"
    assert record["note_id"] == note_identity("git", f"{name}/topics/0/0.md")


def test_a_run_that_failed_is_completed_by_the_next_with_the_same_events(
    repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    run(str(repository.path), private)
    second_commit(repository)
    third_commit(repository)
    # The announcement fails when everything is on S3: the cursor stays where it was.
    broken = private.model_copy(update={"stream": "no-such-stream"})
    with pytest.raises(MissingError, match="no-such-stream"):
        run(str(repository.path), broken)
    objects = sorted(keys(private))
    done = run(str(repository.path), private)
    assert (done.announced, done.deleted, done.uploaded, done.already_there) == (3, 2, 0, 3)
    assert sorted(keys(private)) == objects
    first = [record["event_id"] for record in records(kinesis, private)[FILES:]]

    # Even without a cursor all events have the ids that they had.
    obstore.delete(
        aws.object_store(private),
        [entry["path"] for page in obstore.list(aws.object_store(private), "producers/") for entry in page],
    )
    run(str(repository.path), private, since=repository.commits[0])
    assert [record["event_id"] for record in records(kinesis, private)[FILES + 5 :]] == first


@pytest.mark.parametrize("partial", [False, True])
def test_since_works_without_a_run_before(
    partial: bool, repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    repository.git("config", "uploadpack.allowFilter", str(partial).lower())
    second_commit(repository)
    third_commit(repository)
    summary = run(f"{backend.url}/notes.git", private, since=repository.commits[1])
    assert (summary.announced, summary.deleted, summary.compared) == (1, 2, "with the commit of --since")
    paths = [record["metadata"].get("path") for record in records(kinesis, private)]
    assert paths == ["topics/1/renamed.md", None, None]


def test_since_a_commit_after_the_last_run_forgets_nothing(
    repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    address = str(repository.path)
    run(address, private)
    repository.commit({"topics/0/0.md": b"# Changed\n", "topics/1/1.md": None})
    since = repository.commit({"topics/2/2.md": b"# Changed too\n"})
    repository.commit({"new.md": b"# New\n"})
    summary = run(address, private, since=since)
    # The last run knew older versions of two files, and one that is gone.
    assert (summary.announced, summary.deleted) == (3, 1)
    assert run(address, private).announced == 0


def test_from_the_start_everything_is_announced_once_more(
    repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    address = str(repository.path)
    run(address, private)
    third_commit(repository)
    summary = run(address, private, from_start=True)
    assert (summary.announced, summary.deleted, summary.uploaded) == (FILES - 1, 2, 1)
    assert run(address, private).announced == 0


def test_since_an_unknown_commit_falls_back_and_says_so(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    unknown = "1" * 40
    summary = run(f"{backend.url}/notes.git", private, since=unknown)
    assert summary.compared == "with nothing: the commit of --since is unknown"
    assert summary.announced == FILES
    second_commit(repository)
    summary = run(f"{backend.url}/notes.git", private, since=unknown)
    assert summary.compared == "with the last run: the commit of --since is unknown"
    assert summary.announced == 2
    with pytest.raises(SourceError, match="all 40 hex digits"):
        run(f"{backend.url}/notes.git", private, since="main~1")


def test_an_old_server_is_asked_for_more_history_to_find_a_commit(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    second_commit(repository)
    third_commit(repository)
    # It gives no commit but the tips of branches.
    backend.first_protocol = True
    summary = run(f"{backend.url}/notes.git", private, since=repository.commits[0])
    assert (summary.announced, summary.deleted) == (3, 2)
    # A refusal, and one pack that has all of it.
    posts = [request for request in backend.requests if request.startswith("POST")]
    assert len(posts) == 2
    unknown = run(f"{backend.url}/notes.git", private, since="1" * 40)
    assert unknown.compared == "with the last run: the commit of --since is unknown"


def test_a_branch_that_was_reset_is_compared_tree_by_tree(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    first = repository.commits[0]
    second_commit(repository)
    run(f"{backend.url}/notes.git", private)
    repository.git("reflog", "expire", "--expire=now", "--all")
    # Somebody pushed another history over it, and the old one is gone from the server.
    repository.commit({"topics/0/0.md": b"# Rewritten\n", "topics/3/3.md": None}, parent=first)
    repository.git("gc", "--quiet", "--prune=now")
    summary = run(f"{backend.url}/notes.git", private)
    assert (summary.announced, summary.deleted) == (1, 2)
    deleted = [record["note_id"] for record in records(kinesis, private) if record.get("deleted")]
    name = backend.url.removeprefix("http://") + "/notes"
    assert deleted == [note_identity("git", f"{name}/{path}") for path in ("new.md", "topics/3/3.md")]


def test_a_branch_a_tag_and_a_commit_can_be_named(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    first = repository.commits[0]
    repository.git("tag", "light", first)
    repository.git("-c", "user.name=a", "-c", "user.email=a@b", "tag", "-a", "-m", "m", "v1", first)
    repository.commit({"new.md": b"# New\n"}, branch="work")
    for address in (f"{backend.url}/notes.git", str(repository.path)):
        for ref, commit in {
            "light": first,
            "v1": first,
            "work": repository.commits[1],
            "refs/heads/work": repository.commits[1],
            first: first,
        }.items():
            summary = run(address, private, ref=ref, globs=["new.md"])
            assert summary.commit == commit, (address, ref)
        with pytest.raises(MissingError, match="no branch or tag nowhere"):
            run(address, private, ref="nowhere")


def test_two_paths_are_two_selections_and_each_has_its_own_last_run(
    repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    address = str(repository.path)
    assert run(address, private, globs=["topics/0", "topics/1/*.md"]).announced == 4
    assert run(address, private, globs=["topics/1/*.md", "topics/0/"]).announced == 0
    # Nothing is deleted because it was not asked for.
    wider = run(address, private)
    assert (wider.announced, wider.already_there, wider.deleted) == (FILES, 4, 0)


def test_what_is_no_document_is_left_alone_and_counted(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    repository.commit(
        {
            ".github/workflows/ci.yaml": b"on: push\n",
            ".github/a.md": b"# a\n",
            "docs/.hidden.md": b"# hidden\n",
            "logo.png": b"\x89PNG\r\n",
            "data.csv": b"a,b\x00\x01",
            "empty.md": b"",
            "large.md": b"x" * 5_000,
            "model.txt": pointer,
            "link.md": "120000 ../../etc/passwd",
            "vendored": "160000 " + "2" * 40,
            "LICENSE": b"Do what you like.\n",
            "ünïcode/näme.md": "# Namé\n".encode(),
            "odd\nname\x1b[2J.md": b"# odd\n",
        }
    )
    small = private.model_copy(update={"max_object_bytes": 1_000})
    for address in (f"{backend.url}/notes.git", str(repository.path)):
        summary = run(address, small)
        assert summary.announced == FILES + 3
        assert dict(summary.left_alone) == {
            "binary": 1,
            "empty": 1,
            "hidden": 2,
            "kind that is not read": 1,
            "larger than PKM_MAX_OBJECT_BYTES": 1,
            "pointer to large file storage": 1,
            "submodule": 1,
            "symbolic link": 1,
        }
    # What was looked at once is not fetched again, unless the limit was changed.
    repository.commit({"more.md": b"# More\n"})
    again = run(f"{backend.url}/notes.git", small)
    assert (again.announced, again.left_alone["as before"]) == (1, 4)
    assert run(f"{backend.url}/notes.git", private).announced == 1


def test_a_note_that_is_no_text_any_more_is_deleted(
    repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    run(str(repository.path), private)
    repository.commit({"topics/0/0.md": b"\x00\x01", "topics/1/1.md": "120000 ../0/0.md"})
    summary = run(str(repository.path), private)
    assert (summary.announced, summary.deleted) == (0, 2)


def test_a_partial_clone_fetches_only_the_files_that_changed(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    repository.git("config", "uploadpack.allowFilter", "true")
    repository.commit({"video.mp4": os.urandom(300_000), "big.md": os.urandom(150_000).hex().encode()})
    little = private.model_copy(update={"git_pack_bytes": 250_000})
    run(f"{backend.url}/notes.git", little)
    repository.commit({"small.md": b"# Small\n"})
    # Neither the video nor the file that stays the same would fit.
    assert run(f"{backend.url}/notes.git", little.model_copy(update={"git_pack_bytes": 60_000})).announced == 1


def test_a_batch_that_is_too_large_is_halved_and_a_single_file_left_alone(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    repository.git("config", "uploadpack.allowFilter", "true")
    for number in range(4):
        repository.commit({f"big/{number}.md": os.urandom(60_000).hex().encode()})
    repository.commit({"big/4.md": os.urandom(150_000).hex().encode()})
    summary = run(f"{backend.url}/notes.git", private.model_copy(update={"git_pack_bytes": 100_000}), globs=["big/"])
    assert summary.announced == 4
    assert dict(summary.left_alone) == {"larger than PKM_MAX_OBJECT_BYTES": 1}


def test_a_server_that_sends_everything_must_fit_into_the_limit(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    repository.commit({"video.mp4": os.urandom(300_000)})
    with pytest.raises(SourceError, match="more than 250,000 bytes: set PKM_GIT_PACK_BYTES"):
        run(f"{backend.url}/notes.git", private.model_copy(update={"git_pack_bytes": 250_000}))
    with pytest.raises(SourceError, match="more than 12 files and folders: choose a part of it with --path"):
        run(f"{backend.url}/notes.git", private.model_copy(update={"git_files": 12}))
    few = private.model_copy(update={"git_files": 12})
    assert run(f"{backend.url}/notes.git", few, globs=["topics/0/*"]).announced == 2
