"""What a replay does, remembered on S3 until it is done: a killed one goes on with the same range and version.

replays/current.json      the one that has not ended; there is never a second
replays/NAME.json         those that have
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime

import obstore
import orjson
from obstore.exceptions import AlreadyExistsError, BaseError

from core import aws
from core.errors import MissingError, SettingsError, UnreachableError, reason
from core.settings import Settings, StartPosition, parse_start
from sources.kinesis_range import StreamRange, bounded

__all__ = ["ReplayPlan", "choose_version", "create", "finish", "give_up", "unfinished"]

FOLDER = "replays"
CURRENT = f"{FOLDER}/current.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """A replay as it was asked for, with all that is not in the command line made definite.

    `asked_version` is what the command named, `version` what is written with the rows.
    """

    name: str
    stream: str
    start: str
    until: str | None
    asked_version: str | None
    version: str
    created_at: datetime
    finished_at: datetime | None = None

    @property
    def bounds(self) -> StreamRange:
        """The range; without an end of its own it ends where the stream did when the replay was first started.

        Raises SettingsError when there is nothing in it, or a position can't be read.
        """
        start, until = _position(self.start, "--from"), self.until and _position(self.until, "--until")
        if until == "trim-horizon":
            raise SettingsError("--until trim-horizon is the beginning of the stream: there is nothing before it")
        return bounded(
            self.name,
            start=self.created_at if start == "latest" else start,
            until=until if until and until != "latest" else None,
            now=self.created_at,
        )

    def is_what(self, *, start: str, until: str | None, version: str | None, stream: str) -> bool:
        """Tell whether a command asks for this replay."""
        return (self.start, self.until, self.asked_version, self.stream) == (start, until, version, stream)


def choose_version(asked: str | None, *, live: str, present: Iterable[str], now: datetime) -> str:
    """Return the version that a replay writes: the one asked for, else the next number, else one with the time.

    Raises SettingsError when `asked` is the one that the flow writes: then nobody could tell the rows apart.
    """
    if asked is not None:
        if asked == live:
            raise SettingsError(
                f"--version {asked} is what the flow writes itself (PKM_PROCESSING_VERSION): a replay needs a version"
                " of its own, so that its rows can be told apart; leave --version out for the next number"
            )
        return asked
    if live.isdecimal():
        return str(max(int(version) for version in {live, *present} if version.isdecimal()) + 1)
    return f"{live}-{now:%Y%m%dT%H%M%SZ}"


def unfinished(settings: Settings) -> ReplayPlan | None:
    """Return the replay that was started and has not ended. Raises UnreachableError, and MissingError without a
    bucket."""
    with _reaching(settings):
        store = aws.object_store(settings)
        if not any(entry["path"] == CURRENT for page in obstore.list(store, FOLDER) for entry in page):
            return None
        fields = orjson.loads(bytes(obstore.get(store, CURRENT).bytes()))
    times = {name: datetime.fromisoformat(fields[name]) for name in ("created_at",)}
    return ReplayPlan(**{**fields, **times})


def create(settings: Settings, plan: ReplayPlan) -> None:
    """Remember a new replay. Raises SettingsError when another one was started at the same time."""
    with _reaching(settings):
        try:
            obstore.put(aws.object_store(settings), CURRENT, _encode(plan), mode="create", use_multipart=False)
        except AlreadyExistsError:
            raise SettingsError("another replay was started at the same time: wait for it, or stop it") from None


def finish(settings: Settings, plan: ReplayPlan, *, at: datetime) -> None:
    """Remember that a replay has ended, and drop its recovery snapshots."""
    with _reaching(settings):
        done = replace(plan, finished_at=at)
        obstore.put(aws.object_store(settings), f"{FOLDER}/{plan.name}.json", _encode(done))
    give_up(settings, plan)


def give_up(settings: Settings, plan: ReplayPlan) -> None:
    """Forget an unfinished replay and its snapshots; what it has replaced stays replaced."""
    with _reaching(settings):
        store = aws.object_store(settings)
        snapshots = [entry["path"] for page in obstore.list(store, f"snapshots/{plan.name}") for entry in page]
        obstore.delete(store, [*snapshots, CURRENT])


def _position(text: str, option: str) -> StartPosition:
    try:
        return parse_start(text)
    except ValueError as error:
        raise SettingsError(f"{option} {error}") from None


def _encode(plan: ReplayPlan) -> bytes:
    return orjson.dumps(asdict(plan))


@contextmanager
def _reaching(settings: Settings) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f'there is no bucket "{settings.bucket}": run `pkm init`, or set PKM_BUCKET') from error
    except (BaseError, OSError) as error:
        raise UnreachableError(f"s3://{settings.bucket}/{FOLDER} can't be used: {reason(error)}") from error
