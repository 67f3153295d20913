"""GitHub's REST API as its documentation has it, on loopback: what is asked, what is waited for, what is refused."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from announced import records
from core.errors import ForbiddenAddressError, MissingError, SourceError, UnreachableError
from core.settings import Settings
from git_servers import BareRepository
from github_server import GitHubServer, github_server
from producers.git.github import GitHubRepository, owned_repositories
from producers.git.github_calls import ATTEMPTS
from producers.git.ingest import RepositorySummary, ingest
from producers.git.local import LocalRepository
from producers.git.names import parse_location
from producers.git.opening import repositories
from producers.git.tree import Selection


@pytest.fixture
def repository(tmp_path: Path) -> BareRepository:
    made = BareRepository(tmp_path / "notes.git")
    made.commit(
        {
            **{f"topics/{number % 3}/{number}.md": b"# Note %d\n" % number for number in range(9)},
            "README.md": b"# Read me\n",
            "copy/of/topics/0.md": b"# Note 0\n",
            "other/of/topics/0.md": b"# Note 0\n",
            "logo.png": b"\x89PNG",
            ".github/ci.yaml": b"on: push\n",
            "link.md": "120000 README.md",
            "vendored": "160000 " + "2" * 40,
        }
    )
    return made


@pytest.fixture
def server(repository: BareRepository) -> Iterator[GitHubServer]:
    with github_server() as running:
        running.repositories["Ann/Notes"] = repository
        yield running


@pytest.fixture
def hub(server: GitHubServer) -> Settings:
    """Settings for what needs no stream."""
    return Settings(allow_private_addresses=True, github_url=server.url)


@pytest.fixture
def private(settings: Settings, server: GitHubServer) -> Settings:
    return settings.model_copy(update={"allow_private_addresses": True, "github_url": server.url})


def opened(server: GitHubServer, settings: Settings, path: str = "ann/notes") -> GitHubRepository:
    return GitHubRepository(path, settings=settings, pause=server.pause, clock=server.clock)


def contents(repository: Any) -> dict[str, bytes | None]:
    commit = repository.commit(repository.tip(None))
    entries = [entry for entry in repository.entries(commit, Selection()) if entry.kind == "file"]
    return {entry.path: content for entry, content in repository.contents(entries)}


def run(address: str, settings: Settings, **options: Any) -> RepositorySummary:
    (summary,) = [ingest(each, settings=settings, **options) for each in repositories(address, settings=settings)]
    return summary


def test_the_api_gives_the_same_notes_as_git(
    server: GitHubServer, repository: BareRepository, private: Settings, kinesis: Any
) -> None:
    summary = run("github:ann/notes", private)
    name = server.url.removeprefix("http://") + "/Ann/Notes"
    assert (summary.repository, summary.announced) == (name, 12)
    assert dict(summary.left_alone) == {"hidden": 1, "kind that is not read": 1, "submodule": 1, "symbolic link": 1}
    told = {record["metadata"]["path"]: record for record in records(kinesis, private)}
    local = LocalRepository(parse_location(str(repository.path), settings=private), settings=private)
    expected = {entry.path: entry.id for entry in local.entries(local.commit(local.tip(None)), Selection())}
    commit = local.commit(repository.commits[0])
    local.close()
    for path, record in told.items():
        assert record["metadata"]["blob"] == expected[path]
        assert record["metadata"]["author_time"] == commit.authored_at.isoformat()

    moved = repository.files["topics/1/1.md"]
    repository.commit({"README.md": b"# New\n", "topics/1/1.md": None, "moved.md": moved, "topics/2/2.md": None})
    server.requests.clear()
    changed = run("github:ann/notes", private)
    assert (changed.announced, changed.deleted, changed.unchanged) == (2, 2, 9)
    assert sum("/git/blobs/" in request for request in server.requests) == 2
    since = run("github:ann/notes", private, ref="main", since=repository.commits[0])
    assert (since.announced, since.deleted, since.uploaded) == (2, 2, 0)


def answer_of(server: GitHubServer, path: str) -> Any:
    with urllib.request.urlopen(f"{server.url}/repos/Ann/Notes/contents/{path}?ref=main") as answer:
        return json.load(answer)


def seen_folder_by_folder(server: GitHubServer, path: str = "") -> dict[str, bytes]:
    """Read the repository as people's scripts do: the list of each folder, then each file by its path."""
    found: dict[str, bytes] = {}
    for item in answer_of(server, path):
        if item["type"] == "dir":
            found |= seen_folder_by_folder(server, item["path"])
        elif item["type"] == "file":
            file = answer_of(server, item["path"])
            assert (file["sha"], file["size"]) == (item["sha"], item["size"])
            found[item["path"]] = base64.b64decode(file["content"])
    return found


def test_all_that_the_folders_list_is_read(server: GitHubServer, hub: Settings) -> None:
    hosted = opened(server, hub)
    listed = {path: content for path, content in seen_folder_by_folder(server).items() if path[0] != "."}
    assert len(listed) == 13
    assert contents(hosted) == listed
    hosted.close()


def test_a_run_without_news_costs_two_requests_and_one_of_the_limit(
    server: GitHubServer, private: Settings, kinesis: Any
) -> None:
    run("github:ann/notes", private)
    server.requests.clear()
    before = server.remaining
    assert run("github:ann/notes", private).compared == "nothing new since the last run"
    assert server.requests == ["/repos/ann/notes", "/repos/Ann/Notes/commits/main"]
    assert before - server.remaining == 1


@pytest.mark.parametrize("entries", [100_000, 5])
def test_a_listing_that_is_cut_off_is_walked_folder_by_folder(
    entries: int, server: GitHubServer, repository: BareRepository, hub: Settings
) -> None:
    server.tree_entries = entries
    hosted = opened(server, hub)
    assert contents(hosted) == {path: content for path, content in repository.files.items() if path[0] != "."}
    hosted.close()
    trees = [request for request in server.requests if "/git/trees/" in request]
    # Root, topics and its three, copy, other and their two each (the last is one tree, asked for at each place).
    assert len(trees) == (1 if entries > 5 else 1 + 11)


def test_a_folder_that_the_api_does_not_list_whole_is_refused(server: GitHubServer, hub: Settings) -> None:
    server.tree_entries = server.folder_entries = 2
    hosted = opened(server, hub)
    with pytest.raises(SourceError, match="use its git address"):
        contents(hosted)
    hosted.close()


def test_files_that_are_too_large_are_not_asked_for(server: GitHubServer, hub: Settings) -> None:
    hosted = opened(server, hub.model_copy(update={"max_object_bytes": 9}))
    found = contents(hosted)
    hosted.close()
    assert found["README.md"] is None
    assert found["topics/0/0.md"] == b"# Note 0\n"


def test_a_blob_that_is_not_what_its_id_says_is_refused(server: GitHubServer, hub: Settings) -> None:
    server.spoiled = True
    hosted = opened(server, hub)
    with pytest.raises(SourceError, match="another content"):
        contents(hosted)
    hosted.close()


def test_with_nothing_remaining_the_reset_is_waited_for(server: GitHubServer, hub: Settings) -> None:
    server.now, server.reset_at = 1_000.0, 1_600
    server.limit, server.remaining = 60, 3
    hosted = opened(server, hub)
    contents(hosted)
    hosted.close()
    assert server.pauses == [pytest.approx(601)]
    # It never came to a refusal.
    assert len(server.requests) == len(set(server.requests)) + 2


def test_a_limit_that_was_used_up_by_others_is_waited_for(server: GitHubServer, hub: Settings) -> None:
    server.now, server.reset_at, server.remaining = 1_000.0, 1_900, 0
    hosted = opened(server, hub)
    hosted.close()
    assert server.pauses == [pytest.approx(901)]


@pytest.mark.parametrize(
    ("refusal", "pauses"),
    [
        ((403, {"Retry-After": "17"}, "You have exceeded a secondary rate limit."), [17]),
        ((429, {"Retry-After": "3"}, "Too many requests"), [3]),
        ((403, {}, "You have exceeded a secondary rate limit."), [60]),
        ((502, {}, "Server Error"), [1]),
        ((503, {"Retry-After": "9"}, "Unavailable"), [9]),
    ],
)
def test_a_refusal_is_waited_out_as_the_documentation_asks(
    refusal: Any, pauses: list[float], server: GitHubServer, hub: Settings
) -> None:
    server.refusals = [refusal]
    opened(server, hub).close()
    assert server.pauses == [pytest.approx(pause) for pause in pauses]


def test_refusals_without_end_are_told(server: GitHubServer, hub: Settings) -> None:
    server.refusals = [(403, {}, "You have exceeded a secondary rate limit.")] * 9
    with pytest.raises(UnreachableError, match=rf"{ATTEMPTS} times .*secondary rate limit.*PKM_GITHUB_TOKEN"):
        opened(server, hub)
    assert server.pauses == [60, 120, 240, 480]
    server.refusals = [(429, {"Retry-After": "86400"}, "Too many requests")]
    with pytest.raises(UnreachableError, match="asks to wait for 86,400 s"):
        opened(server, hub)


def test_the_token_is_sent_to_the_api_and_nowhere_else(server: GitHubServer, hub: Settings) -> None:
    server.token = "ghp_s3cret"
    with pytest.raises(MissingError, match="PKM_GITHUB_TOKEN"):
        opened(server, hub)
    with pytest.raises(MissingError, match=r"Bad credentials.*PKM_GITHUB_TOKEN") as refused:
        opened(server, hub.model_copy(update={"github_token": SecretStr("ghp_wr0ng")}))
    assert "wr0ng" not in str(refused.value)
    settings = hub.model_copy(update={"github_token": SecretStr("ghp_s3cret")})
    opened(server, settings).close()
    assert server.headers[-1]["authorization"] == "Bearer ghp_s3cret"
    assert server.headers[-1]["x-github-api-version"] == "2022-11-28"
    server.repositories |= {f"Ann/{number}": server.repositories["Ann/Notes"] for number in range(5)}
    server.page_items, server.next_page_host = 2, "http://127.0.0.1:9"
    with pytest.raises(SourceError, match="leads to another host"):
        owned_repositories("ann", settings=settings)


@pytest.mark.parametrize("owner", ["ann", "Ann"])
def test_an_owner_stands_for_all_repositories_page_by_page(
    owner: str, server: GitHubServer, hub: Settings, repository: BareRepository
) -> None:
    server.page_items = 2
    names = [f"Ann/{name}" for name in ("a", "b", "c", "d", "a-fork", "old-thing")]
    server.repositories = dict.fromkeys([*names, "Bob/x"], repository)
    assert owned_repositories(owner, settings=hub) == ["Ann/a", "Ann/b", "Ann/c", "Ann/d"]
    with pytest.raises(MissingError, match="no repository that can be read"):
        owned_repositories("nobody", settings=hub)


def test_a_repository_that_was_renamed_is_found_under_its_new_name(server: GitHubServer, hub: Settings) -> None:
    server.renamed["ann/diary"] = "Ann/Notes"
    hosted = opened(server, hub, "ann/diary")
    assert hosted.name.endswith("/Ann/Notes")
    hosted.close()


def test_what_is_not_there_is_named(server: GitHubServer, hub: Settings, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="HTTP 404, Not Found: check the name"):
        opened(server, hub, "ann/nothing")
    hosted = opened(server, hub)
    with pytest.raises(MissingError, match="HTTP 422, No commit found"):
        hosted.tip("nowhere")
    with pytest.raises(MissingError, match="HTTP 422"):
        hosted.commit("1" * 40)
    hosted.close()
    server.repositories["Ann/Empty"] = BareRepository(tmp_path / "empty.git")
    empty = opened(server, hub, "ann/empty")
    with pytest.raises(MissingError, match="HTTP 409, Git Repository is empty"):
        empty.tip(None)
    empty.close()


def test_another_server_than_github_is_told_from_it(server: GitHubServer, hub: Settings) -> None:
    server.refusals = [(200, {}, "hello")]
    with pytest.raises(SourceError, match='answers without "full_name": is PKM_GITHUB_URL right'):
        opened(server, hub)


def test_the_api_is_guarded_as_the_web_is(server: GitHubServer) -> None:
    with pytest.raises(SourceError, match="would send the token unprotected"):
        opened(server, Settings(github_url=server.url))
    with pytest.raises(ForbiddenAddressError, match="PKM_ALLOW_PRIVATE_ADDRESSES"):
        opened(server, Settings(github_url="https://127.0.0.1"))
    assert server.requests == []
