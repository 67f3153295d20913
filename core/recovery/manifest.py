"""What a flow's manifest says and how it is written: pure functions, signed or plain.

The file is JSON: `{"manifest": {…}, "digest_algorithm": …, "digest": …}`. The digest is over the compact JSON of
`manifest` with sorted keys: SHA-256, or with a key HMAC-SHA256, which also binds the flow's name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from core.errors import SnapshotError
from core.recovery.fit import UNKNOWN, FlowShape

__all__ = [
    "OBJECT_NAME",
    "PLAIN",
    "SIGNED",
    "Manifest",
    "Seal",
    "Snapshot",
    "from_json",
    "retained",
    "to_json",
    "unknown_to",
]

FORMAT = 2
PLAIN = "sha256"
SIGNED = "hmac-sha256"
OBJECT_NAME = re.compile(r"(?P<execution>\d+)-(?P<counter>\d+)-[0-9a-f]+\.sqlite")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable copy of a flow's recovery database, as the manifest lists it.

    `epoch` is where bytewax resumes from it; `state_digest` is a fingerprint of the state it resumes with, equal for
    two copies between which nothing but the clock moved on. One that has the name of a `savepoint` is kept for ever.
    """

    id: str
    execution: int
    counter: int
    epoch: int
    created_at: datetime
    size_bytes: int
    digest_algorithm: str
    digest: str
    state_digest: str
    shape: FlowShape = UNKNOWN
    savepoint: str | None = None

    @property
    def name(self) -> str:
        """Name of the object within the flow's prefix; sorts by age."""
        return f"{self.execution:06d}-{self.counter:06d}-{self.id}.sqlite"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known about a flow's state: who owns it, and its snapshots, the one to resume from last.

    `shape` is that of the execution that owns the flow. `revision` grows with every change.
    """

    flow: str
    stream: str
    execution: int
    snapshots: tuple[Snapshot, ...] = ()
    shape: FlowShape = UNKNOWN
    revision: int = 0

    @property
    def newest(self) -> Snapshot | None:
        """The snapshot that the next execution resumes from."""
        return self.snapshots[-1] if self.snapshots else None


class Seal:
    """Makes and checks digests: HMAC-SHA256 over flow, label and content with a key, plain SHA-256 without."""

    def __init__(self, *, flow: str, key: bytes | None) -> None:
        self._flow = flow
        self._key = key
        self.algorithm = SIGNED if key else PLAIN

    def digest(self, label: str, content: bytes) -> str:
        """Return the hexadecimal digest of `content`; `label` keeps one thing from standing in for another."""
        if not self._key:
            return hashlib.sha256(content).hexdigest()
        signature = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (self._flow.encode(), label.encode()):
            signature.update(len(part).to_bytes(8, "big") + part)
        signature.update(content)
        return signature.hexdigest()

    def matches(self, label: str, content: bytes, digest: object) -> bool:
        """Compare in constant time; `digest` may be anything that JSON can hold."""
        return hmac.compare_digest(self.digest(label, content).encode(), str(digest).encode())

    def refuse_other(self, algorithm: object, uri: str) -> None:
        """Raise SnapshotError when what is at `uri` is signed while no key is set, or not signed while one is."""
        if algorithm == self.algorithm:
            return
        if self._key:
            raise SnapshotError(
                f"{uri} is not signed, but PKM_SNAPSHOT_KEY is set: unset it if you trust the bucket, or delete the "
                f"prefix snapshots/{self._flow}/ to start without a snapshot"
            )
        raise SnapshotError(f"{uri} is signed: set PKM_SNAPSHOT_KEY to the key it was signed with")


def to_json(manifest: Manifest, seal: Seal) -> bytes:
    """Write `manifest` with its digest."""
    body = {
        "format": FORMAT,
        "flow": manifest.flow,
        "stream": manifest.stream,
        "execution": manifest.execution,
        "revision": manifest.revision,
        "shape": asdict(manifest.shape),
        "snapshots": [asdict(one) for one in manifest.snapshots],
    }
    digest = seal.digest("manifest", _encode(body))
    return _encode({"manifest": body, "digest_algorithm": seal.algorithm, "digest": digest})


def from_json(content: bytes, seal: Seal, *, flow: str, uri: str) -> Manifest:
    """Read what `to_json` wrote; the digest is checked before a single value is used.

    Raises SnapshotError, which names `uri`, when it is damaged, forged, signed with another key, not signed while a
    key is set, or about another flow.
    """
    try:
        document: dict[str, Any] = orjson.loads(content)
        body, algorithm, digest = document["manifest"], document["digest_algorithm"], document["digest"]
        encoded = _encode(body)
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{uri} can't be read ({error!r}): put an older version of it back") from error
    seal.refuse_other(algorithm, uri)
    if not seal.matches("manifest", encoded, digest):
        raise SnapshotError(
            f"{uri} does not match its {algorithm} digest: check PKM_SNAPSHOT_KEY; if it is right, somebody changed "
            f"the manifest, and an older version of it must be put back"
        )
    try:
        if body["format"] != FORMAT or body["flow"] != flow:
            raise ValueError(f"format {body['format']} of flow {body['flow']}")
        snapshots = tuple(
            Snapshot(
                **{
                    **one,
                    "created_at": datetime.fromisoformat(one["created_at"]),
                    "shape": _shape(one["shape"]),
                }
            )
            for one in body["snapshots"]
        )
        return Manifest(
            body["flow"],
            body["stream"],
            body["execution"],
            snapshots,
            shape=_shape(body["shape"]),
            revision=body["revision"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{uri} can't be used ({error!r}): another version of pkm wrote it") from error


def retained(snapshots: tuple[Snapshot, ...], *, now: datetime, count: int, age: timedelta) -> tuple[Snapshot, ...]:
    """Return what is kept: all savepoints, the last one, and of the others the last `count` up to `age`."""
    unnamed = [one for one in snapshots if one.savepoint is None]
    young = {one.id for one in unnamed[-count:] if now - one.created_at <= age}
    return tuple(one for one in snapshots if one.savepoint or one.id in young or one is snapshots[-1])


def unknown_to(manifest: Manifest | None, names: Iterable[str]) -> str | None:
    """Return an object among `names` that a newer manifest than this one has known, or None.

    An execution stores its next object before the manifest lists it, so one beyond what is listed proves nothing; two
    do, and so does any of an execution that the manifest does not know. Such an object says that an older manifest
    was put back. `names` must have been listed before the manifest was read.
    """
    last: dict[int, int] = {}
    for one in manifest.snapshots if manifest else ():
        last[one.execution] = max(one.counter, last.get(one.execution, 0))
    newest = manifest.execution if manifest else 0
    for name in sorted(names, reverse=True):
        match = OBJECT_NAME.fullmatch(name)
        if match:
            execution, counter = int(match["execution"]), int(match["counter"])
            if execution > newest or (execution == newest and counter > last.get(execution, 0) + 1):
                return name
    return None


def _shape(value: dict[str, Any]) -> FlowShape:
    return FlowShape(tuple(value["steps"]), value["source_partitions"])


def _encode(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
