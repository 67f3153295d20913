"""A server in the shape of GitHub's REST API, over a git repository: what its public documentation says, no more.

Repository, commits (with the media type for the id alone, and its ETag), git/commits, git/trees (recursive,
truncated above a limit, single folders too), git/blobs (raw), contents (a folder's list, a file in base64), lists of
repositories in pages with a Link header; the headers of the rate limit, its primary refusal (403, nothing remaining),
the secondary one (403 or 429 with or without Retry-After), what is renamed (301), hidden (404), unknown (422), empty
(409).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from git_servers import BareRepository, serving

NAMES = re.compile(r"/repos/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")


@dataclass
class GitHubServer:
    """What a test holds: the repositories, the limits, and what was asked."""

    repositories: dict[str, BareRepository] = field(default_factory=dict)
    """By `OWNER/NAME` as GitHub spells it."""
    renamed: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """When set, without it nothing is there."""
    tree_entries: int = 100_000
    folder_entries: int = 100_000
    page_items: int = 100
    limit: int = 5_000
    remaining: int = 5_000
    reset_at: int = 0
    now: float = 0.0
    """Time of the server; `pause` of the client moves it."""
    refusals: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    """Answers for the next requests: status, headers, message."""
    spoiled: bool = False
    """When set, blobs have another content than their id says."""
    next_page_host: str | None = None
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    url: str = ""

    def pause(self, seconds: float) -> None:
        """Let time pass, for a client that waits."""
        self.pauses.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


class _Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.headers = status, message, headers or {}


@contextmanager
def github_server() -> Iterator[GitHubServer]:
    """Run the server on loopback."""
    state = GitHubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append(self.path)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            if state.now >= state.reset_at:
                state.remaining, state.reset_at = state.limit, int(state.now) + 3_600
            try:
                status, headers, body = self.answer()
            except _Refused as refused:
                status, headers = refused.status, refused.headers
                body = json.dumps({"message": refused.message, "documentation_url": "https://docs.example"}).encode()
            self.send_response(status)
            limits = {"limit": state.limit, "remaining": state.remaining, "reset": state.reset_at}
            for name, value in headers.items():
                self.send_header(name, value)
            for name, value in limits.items():
                self.send_header(f"X-RateLimit-{name.title()}", str(value))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self) -> tuple[int, dict[str, str], bytes]:
            if state.refusals:
                status, headers, message = state.refusals.pop(0)
                raise _Refused(status, message, headers)
            if state.token and self.headers["Authorization"] is None:
                raise _Refused(404, "Not Found")
            if state.token and self.headers["Authorization"] != f"Bearer {state.token}":
                raise _Refused(401, "Bad credentials")
            if state.remaining == 0:
                raise _Refused(403, "API rate limit exceeded for 192.0.2.1.")
            if not self.headers["User-Agent"]:
                raise _Refused(403, "Request forbidden by administrative rules.")
            status, headers, body = _route(state, self.path, self.headers["Accept"], self.headers["If-None-Match"])
            # "Making a conditional request does not count against your primary rate limit if a 304 is returned".
            state.remaining -= status != 304
            return status, headers, body

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        state.url = f"http://127.0.0.1:{port}"
        yield state


def _route(state: GitHubServer, target: str, accept: str, etag: str | None) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(target)
    path, query = unquote(parts.path), parse_qs(parts.query)
    if found := re.fullmatch(r"/(orgs|users)/([^/]+)/repos", path):
        return _listing(state, found[1], found[2], query)
    found = NAMES.fullmatch(path)
    if not found:
        raise _Refused(404, "Not Found")
    name, rest = found["name"], found["rest"] or ""
    for old, new in state.renamed.items():
        if name.lower() == old.lower():
            moved = state.url + parts.path.replace(name, new) + (f"?{parts.query}" if parts.query else "")
            return 301, {"Location": moved}, b"{}"
    known = {each.lower(): each for each in state.repositories}
    full_name = known.get(name.lower())
    if full_name is None:
        raise _Refused(404, "Not Found")
    repository = state.repositories[full_name]
    if not rest:
        return _json({"full_name": full_name, "default_branch": "main", "private": False})
    for pattern, answer in _ANSWERS.items():
        if found := re.fullmatch(pattern, rest):
            return answer(state, repository, found[1], query, accept, etag)
    raise _Refused(404, "Not Found")


def _listing(state: GitHubServer, kind: str, owner: str, query: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    if kind == "orgs" and owner.islower():
        raise _Refused(404, "Not Found")
    names = sorted(name for name in state.repositories if name.split("/")[0].lower() == owner.lower())
    items = [{"full_name": name, "fork": "fork" in name, "archived": "old" in name} for name in names]
    page, size = int(query.get("page", ["1"])[0]), min(int(query["per_page"][0]), state.page_items)
    headers = {}
    if page * size < len(items):
        host = state.next_page_host or state.url
        following = f"{host}/{kind}/{owner}/repos?per_page={size}&page={page + 1}"
        headers["Link"] = f'<{host}/x>; rel="first", <{following}>; rel="next"'
    return _json(items[(page - 1) * size : page * size], headers)


def _commit_of_ref(
    state: GitHubServer, repository: BareRepository, ref: str, query: Any, accept: str, etag: str | None
) -> tuple[int, dict[str, str], bytes]:
    if not repository.commits:
        raise _Refused(409, "Git Repository is empty.")
    commit_id = _resolved(repository, ref)
    if etag == f'"{commit_id}"':
        return 304, {"ETag": f'"{commit_id}"'}, b""
    assert accept == "application/vnd.github.sha"
    return 200, {"ETag": f'"{commit_id}"', "Content-Type": "application/vnd.github.sha"}, commit_id.encode()


def _commit(
    state: GitHubServer, repository: BareRepository, commit_id: str, query: Any, accept: str, etag: str | None
) -> tuple[int, dict[str, str], bytes]:
    commit_id = _resolved(repository, commit_id)
    tree, authored, committed = repository.git("show", "-s", "--format=%T %at %ct", commit_id).split()
    return _json(
        {
            "sha": commit_id,
            "tree": {"sha": tree},
            "author": {"name": "Ann", "date": _zulu(authored)},
            "committer": {"name": "Ann", "date": _zulu(committed)},
        }
    )


def _tree(
    state: GitHubServer, repository: BareRepository, tree: str, query: Any, accept: str, etag: str | None
) -> tuple[int, dict[str, str], bytes]:
    recursive = "recursive" in query
    options = ["-r", "-t"] if recursive else []
    lines = [line for line in repository.git("ls-tree", "-z", "-l", *options, tree).split("\0") if line]
    most = state.tree_entries if recursive else state.folder_entries
    entries = []
    for line in lines[:most]:
        about, path = line.split("\t", 1)
        mode, kind, object_id, size = about.split()
        entry = {"path": path, "mode": mode, "type": kind, "sha": object_id, "url": f"{state.url}/{object_id}"}
        entries.append(entry | ({"size": int(size)} if kind == "blob" else {}))
    return _json({"sha": tree, "tree": entries, "truncated": len(lines) > most})


def _blob(
    state: GitHubServer, repository: BareRepository, object_id: str, query: Any, accept: str, etag: str | None
) -> tuple[int, dict[str, str], bytes]:
    assert accept == "application/vnd.github.raw+json"
    content = repository.read(object_id)
    return 200, {"Content-Type": "application/octet-stream"}, content[::-1] + b"?" if state.spoiled else content


def _contents(
    state: GitHubServer, repository: BareRepository, path: str, query: Any, accept: str, etag: str | None
) -> tuple[int, dict[str, str], bytes]:
    commit = _resolved(repository, query.get("ref", ["main"])[0])
    path = path.strip("/")
    lines = repository.git("ls-tree", "-z", "-l", commit, *([path] if path else [])).split("\0")
    if path:
        # A folder names itself without a slash at its end, and what it holds with one.
        listed = [line for line in lines if line]
        if not listed:
            raise _Refused(404, "Not Found")
        if listed[0].split()[1] != "tree":
            return _json(_content_of(repository, listed[0], whole=True))
        lines = repository.git("ls-tree", "-z", "-l", commit, f"{path}/").split("\0")
    # "This API has an upper limit of 1,000 files for a directory."
    return _json([_content_of(repository, line, whole=False) for line in lines if line][:1000])


def _content_of(repository: BareRepository, line: str, *, whole: bool) -> dict[str, Any]:
    about, path = line.split("\t", 1)
    mode, kind, object_id, size = about.split()
    kinds = {"tree": "dir", "commit": "submodule", "blob": "symlink" if mode == "120000" else "file"}
    found: dict[str, Any] = {"type": kinds[kind], "name": path.rpartition("/")[2], "path": path, "sha": object_id}
    found["size"] = int(size) if kind == "blob" else 0
    if whole and kind == "blob":
        found |= {"encoding": "base64", "content": base64.encodebytes(repository.read(object_id)).decode()}
    return found


_Answer = Callable[[GitHubServer, BareRepository, str, Any, str, "str | None"], tuple[int, dict[str, str], bytes]]
_ANSWERS: dict[str, _Answer] = {
    r"/commits/(.+)": _commit_of_ref,
    r"/git/commits/([0-9a-f]{40})": _commit,
    r"/git/trees/([0-9a-f]{40})": _tree,
    r"/git/blobs/([0-9a-f]{40})": _blob,
    r"/contents(.*)": _contents,
}


def _resolved(repository: BareRepository, ref: str) -> str:
    try:
        return repository.git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    except AssertionError:
        raise _Refused(422, f"No commit found for SHA: {ref}") from None


def _zulu(seconds: str) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(value: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, json.dumps(value).encode()
