"""A repository on a git server: its refs, and packs of objects, with dulwich's protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import httpx2
from dulwich.client import GitClient
from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
from dulwich.objects import ObjectID
from dulwich.refs import Ref

from core.errors import MissingError, SourceError, UnreachableError, reason
from core.settings import Settings
from core.visible import visible
from producers.addresses import guarded_client
from producers.git.names import Location
from producers.git.pack import Pack, index_pack
from producers.git.transports import Budget, HttpClient, RefusedError, SshClient, TcpClient, TooMuchError

__all__ = ["LARGEST_TREE_BYTES", "GitServer"]

LARGEST_TREE_BYTES = 16 * 1024 * 1024
SHOWN_CHARACTERS = 200
# How git, and the servers that are written in Java, say that they don't give an object.
UNKNOWN = re.compile(rb"not our ref|want [0-9a-f]{40} not valid")


class GitServer:
    """A repository on a git server. Each call is a conversation of its own, of at most PKM_GIT_SECONDS.

    Calls raise RefusedError for an answer that is none, TooMuchError above PKM_GIT_PACK_BYTES, UnreachableError,
    ForbiddenAddressError, and MissingError for a repository that is not there or not for us.
    """

    def __init__(self, location: Location, settings: Settings) -> None:
        self._location, self._settings = location, settings
        self._http: httpx2.Client | None = None
        if location.scheme in {"https", "http"}:
            self._http = guarded_client(settings, timeout=settings.request_seconds)

    def close(self) -> None:
        """Close connections that are kept."""
        if self._http is not None:
            self._http.close()

    def refs(self, prefixes: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the refs that begin with one of `prefixes`; what a tag stands for is under its name and `^{}`."""
        with self._session() as (client, path, _):
            found = client.get_refs(path.encode(), ref_prefix=list(prefixes)).refs
        return {bytes(name): bytes(value) for name, value in found.items() if value is not None}

    def fetch(
        self,
        wants: Sequence[str],
        *,
        depth: int | None = None,
        without_blobs: bool = False,
    ) -> Pack:
        """Fetch the objects `wants` and what they need, commits at most `depth` deep (default: all).

        Blobs are left out only if the server can do so.
        """
        pack = bytearray()
        with self._session() as (client, path, budget):

            def wanted(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:  # noqa: ARG001
                return [ObjectID(want.encode()) for want in wants]

            def write(data: bytes) -> int:
                if len(pack) + len(data) > self._settings.git_pack_bytes:
                    raise TooMuchError(
                        f'"{self._location.name}" sends a pack of more than {self._settings.git_pack_bytes:,} bytes: '
                        "set PKM_GIT_PACK_BYTES"
                    )
                pack.extend(data)
                return len(data)

            client.fetch_pack(
                path,
                wanted,
                _Nothing(),
                write,
                depth=depth,
                ref_prefix=[b"HEAD"],
                filter_spec=b"blob:none" if without_blobs else None,
            )
            if not pack:
                raise RefusedError(f'"{self._location.name}" sent nothing')
            # Trees and commits are small; they must not be held to a limit that was meant for documents.
            most = max(self._settings.max_object_bytes, LARGEST_TREE_BYTES)
            return index_pack(pack, max_object_bytes=most, check=budget.check)

    @contextmanager
    def _session(self) -> Iterator[tuple[GitClient, str, Budget]]:
        location, settings = self._location, self._settings
        budget = Budget(location.name, settings)
        client: GitClient
        path = location.path
        with ExitStack() as stack, _explained(location, budget):
            if self._http is not None:
                client, path = HttpClient(location, self._http, budget), ""
            elif location.scheme == "ssh":
                client = SshClient(location, settings, budget, stack)
            else:
                client = TcpClient(location, settings, budget, stack)
            yield client, path, budget


class _Nothing:
    """What we have, for the server to leave out: no commit at all."""

    shallow = None

    def __next__(self) -> None:
        return None

    def ack(self, _commit: bytes) -> None:
        pass

    def nak(self) -> None:
        pass


@contextmanager
def _explained(location: Location, budget: Budget) -> Iterator[None]:
    """Say in our words what went wrong."""
    name = location.name
    try:
        yield
    except (SourceError, UnreachableError, MissingError):
        raise
    except NotGitRepository as error:
        raise MissingError(f'there is no git repository at "{name}", or not for us') from error
    except httpx2.TransportError as error:
        budget.check()
        raise UnreachableError(f'"{name}" can\'t be reached: {reason(error)}') from error
    except (GitProtocolError, HangupException) as error:
        budget.check()
        if isinstance(error.__cause__, OSError):
            raise UnreachableError(f'"{name}" can\'t be reached: {reason(error.__cause__)}') from error
        said = visible(reason(error))[:SHOWN_CHARACTERS]
        unknown = bool(UNKNOWN.search(budget.last) or UNKNOWN.search(said.encode()))
        raise RefusedError(f'"{name}" refused, or is no git server: {said}', unknown=unknown) from error
    except OSError as error:
        budget.check()
        raise UnreachableError(f'"{name}" can\'t be reached: {reason(error)}') from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError, httpx2.InvalidURL) as error:
        # What the library makes of answers that nobody foresaw.
        raise RefusedError(f'"{name}" does not answer as a git server does ({type(error).__name__})') from error
