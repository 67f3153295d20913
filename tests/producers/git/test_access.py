"""How a repository is reached: what is told to whom, and which addresses and ways are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import obstore
import pytest

from announced import records
from core import aws
from core.errors import ForbiddenAddressError, MissingError, SourceError, UnreachableError
from core.settings import Settings
from git_runs import run
from git_servers import BareRepository, HttpBackend, http_backend, ssh_program


def test_user_and_password_go_to_the_server_and_nowhere_else(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any, capsys: Any
) -> None:
    backend.password = "ann:s3cr3t/word"
    host = backend.url.removeprefix("http://")
    with pytest.raises(MissingError, match=r"is not for us \(HTTP 401\)"):
        run(f"http://{host}/notes.git", private)
    with pytest.raises(MissingError) as refused:
        run(f"http://ann:wr0ng@{host}/notes.git", private)
    assert "wr0ng" not in str(refused.value)
    summary = run(f"http://ann:s3cr3t%2Fword@{host}/notes.git", private, globs=["topics/0/0.md"])
    assert summary.repository == f"{host}/notes"
    store = aws.object_store(private)
    (cursor,) = [entry["path"] for page in obstore.list(store, "producers/") for entry in page]
    (record,) = records(kinesis, private)
    written = [bytes(obstore.get(store, cursor).bytes()).decode(), str(record), str(summary), *capsys.readouterr()]
    assert not any("s3cr3t" in text for text in written)


def test_credentials_do_not_follow_a_redirect_to_another_host(
    repository: BareRepository, backend: HttpBackend, private: Settings, kinesis: Any
) -> None:
    with http_backend(repository.path.parent) as other:
        backend.moved_to = other.url.replace("127.0.0.1", "localhost")
        host = backend.url.removeprefix("http://")
        assert run(f"http://ann:secret@{host}/notes.git", private, globs=["topics/0/0.md"]).announced == 1
        assert backend.authorizations[0] is not None
        assert set(other.authorizations) == {None}


def test_a_redirect_without_end_is_not_followed(
    repository: BareRepository, backend: HttpBackend, private: Settings
) -> None:
    backend.moved_to = backend.url
    with pytest.raises(SourceError, match="redirects more than 3 times"):
        run(f"{backend.url}/notes.git", private)
    assert len(backend.requests) == 4


@pytest.mark.parametrize(
    "address",
    ["https://127.0.0.1:8443/a.git", "https://localhost/a.git", "ssh://git@127.0.0.1/a.git", "git@[::1]:a.git"],
)
def test_private_addresses_are_refused_unless_allowed(address: str, settings: Settings) -> None:
    with pytest.raises(ForbiddenAddressError, match="PKM_ALLOW_PRIVATE_ADDRESSES"):
        run(address, settings)


@pytest.mark.parametrize("address", ["git://example.org/a.git", "http://example.org/a.git"])
def test_ways_that_nothing_protects_are_refused_unless_allowed(address: str, settings: Settings) -> None:
    with pytest.raises(SourceError, match="PKM_ALLOW_PRIVATE_ADDRESSES"):
        run(address, settings)


def test_ssh_asks_nobody_and_connects_to_the_address_that_was_checked(
    repository: BareRepository, settings: Settings, kinesis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh_program(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run(f"ssh://git@93.184.216.34:2222{repository.path}", settings, globs=["topics/0/0.md"])
    arguments = (tmp_path / "arguments").read_text().splitlines()
    first = arguments[: arguments.index("93.184.216.34") + 2]
    assert {"-oBatchMode=yes", "-oHostName=93.184.216.34", "-oProxyCommand=none", "-oUpdateHostKeys=no"} <= set(first)
    assert "-oHostKeyAlias=[93.184.216.34]:2222" in first
    assert first[-4:] == ["git", "--", "93.184.216.34", f"git-upload-pack '{repository.path}'"]


def test_what_is_not_there_is_named(
    tmp_path: Path, repository: BareRepository, backend: HttpBackend, private: Settings, monkeypatch: Any
) -> None:
    for address in (f"{backend.url}/nothing.git", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(MissingError, match="there is no git repository"):
            run(address, private)
    BareRepository(repository.path.parent / "empty.git")
    for address in (f"{backend.url}/empty.git", str(repository.path.parent / "empty.git")):
        with pytest.raises(MissingError, match="has no commit yet"):
            run(address, private)
    with pytest.raises(UnreachableError, match="can't be reached"):
        run("http://127.0.0.1:9/a.git", private)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="no program ssh"):
        run("git@127.0.0.1:a.git", private)
