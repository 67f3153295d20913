"""How a repository is called: the same on every machine and over every protocol, and without credentials."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import PkmError, SourceError
from core.settings import Settings
from producers.git.names import parse_location

ANY = Settings(allow_private_addresses=True)
STRICT = Settings()


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/ann/notes",
        "https://github.com/ann/notes.git",
        "https://github.com/ann/notes/",
        "https://GitHub.com:443//ann/notes.git/",
        "https://ann:t0ken@github.com/ann/notes.git",
        "https://github.com/ann/n%6Ftes",
        "ssh://git@github.com/ann/notes.git",
        "ssh://github.com:22/ann/notes.git",
        "git@github.com:ann/notes.git",
        "github.com:ann/notes",
        "git://github.com/ann/notes.git",
        "github:ann/notes",
    ],
)
def test_one_repository_has_one_name(address: str) -> None:
    location = parse_location(address, settings=ANY)
    assert location.name == "github.com/ann/notes"
    assert "t0ken" not in repr(location)
    assert "t0ken" not in location.url


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://git.example.org:8443/a.git", "git.example.org:8443/a"),
        ("ssh://git@[2001:db8::1]:2222/a/b.git", "2001:db8::1:2222/a/b"),
        ("git@[2001:db8::1]:a/b.git", "2001:db8::1/a/b"),
        ("git@example.org:~ann/a.git", "example.org/~ann/a"),
        ("github:ann", "github.com/ann"),
    ],
)
def test_ports_that_are_not_the_usual_ones_are_part_of_the_name(address: str, name: str) -> None:
    assert parse_location(address, settings=ANY).name == name


def test_github_enterprise_and_its_git_addresses_have_the_same_name() -> None:
    settings = Settings(github_url="https://github.example.org/api/v3")
    assert parse_location("github:ann/notes", settings=settings).name == "github.example.org/ann/notes"
    assert parse_location("git@github.example.org:ann/notes.git", settings=settings).name == (
        "github.example.org/ann/notes"
    )


def test_a_local_repository_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vault" / ".git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for address in ("vault", "./vault/", "vault/.git", str(tmp_path / "vault"), (tmp_path / "vault").as_uri()):
        location = parse_location(address, settings=STRICT)
        assert (location.scheme, location.name) == ("local", str(tmp_path / "vault"))


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/a.git",
        "git://example.org/a.git",
        "ftp://example.org/a.git",
        "ext::sh -c true",
        "https://example.org",
        "https:///a.git",
        "https://example.org:port/a.git",
        "https://example.org:0/a.git",
        "file://elsewhere/a.git",
        "ssh://-oProxyCommand=x/a.git",
        "ssh://-oProxyCommand=x@example.org/a.git",
        "ssh://git:secret@example.org/a.git",
        "git@example.org:-x",
        "ann:secret@example.org/a.git",
        "github:",
        "github:..",
        "github:ann/notes/tree",
        "github:ann/n?tes",
        "https://example.org/a\n.git",
        "https://example.org/" + "a" * 1_000,
    ],
)
def test_what_is_no_repository_or_not_safe_is_refused_without_showing_a_password(address: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse_location(address, settings=STRICT)
    assert "secret" not in str(refused.value)


@given(st.text(max_size=60) | st.builds("https://u:{}@h/{}".format, st.text(max_size=9), st.text(max_size=9)))
def test_any_text_is_an_address_or_is_refused(address: str) -> None:
    try:
        location = parse_location(address, settings=STRICT)
    except PkmError:
        return
    assert location.name
