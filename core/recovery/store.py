"""Recovery snapshots on S3: immutable objects, and one manifest per flow that is replaced by conditional put.

Layout in the product's bucket:

    snapshots/FLOW/manifest.json
    snapshots/FLOW/EXECUTION-COUNTER-ID.sqlite

The manifest names the execution that owns the flow's state. A new execution claims it; from then on everything an
older one tries to publish is refused (fencing). A snapshot is a SQLite file whose rows are pickles, so whoever can
write the bucket could run code on resume: with a key, manifest and snapshots carry an HMAC that is checked first.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from core import aws
from core.errors import FencedError, MissingError, PkmError, SnapshotError, UnreachableError
from core.recovery.manifest import Manifest, Seal, Snapshot, from_json, to_json
from core.settings import Settings

if TYPE_CHECKING:
    from obstore import PutMode

__all__ = ["SnapshotStore"]

PREFIX = "snapshots"
# Each conflict means that another execution won a round; that many in a row is a crash loop, not a race.
CONFLICTS = 20
_FLOW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OBJECT_NAME = re.compile(r"(?P<execution>\d+)-\d+-[0-9a-f]+\.sqlite")

_log = structlog.get_logger(module=__name__)


class SnapshotStore:
    """The snapshots of one flow. Holds no state, so any number of processes may use it at the same time.

    All methods raise UnreachableError when S3 fails after its retries, and SnapshotError when the manifest is
    damaged, forged, or signed with another key than `PKM_SNAPSHOT_KEY`.
    """

    def __init__(self, settings: Settings, *, flow: str) -> None:
        if not _FLOW_NAME.fullmatch(flow):
            raise ValueError(f'"{flow}" can\'t name a flow: use letters, digits, "-" and "_"')
        self._settings = settings
        self._flow = flow
        self._objects = aws.object_store(settings)
        key = settings.snapshot_key
        self._seal = Seal(flow=flow, key=key.get_secret_value().encode() if key else None)

    def uri(self, snapshot: Snapshot | None = None) -> str:
        """Name the manifest, or one snapshot, as people and other tools do."""
        return f"s3://{self._settings.bucket}/{self._path(snapshot.name if snapshot else 'manifest.json')}"

    def manifest(self) -> Manifest | None:
        """Read and verify the manifest; None when the flow never ran."""
        found = self._read()
        return found[0] if found else None

    def claim(self) -> Manifest:
        """Take over the flow for a new execution, and fence all older ones; returns the manifest as claimed.

        Raises SnapshotError when the snapshots belong to another stream, MissingError when there is no bucket.
        """
        for _ in range(CONFLICTS):
            found = self._read()
            manifest, tag = found or (Manifest(self._flow, self._settings.stream, 0), None)
            if manifest.stream != self._settings.stream:
                raise SnapshotError(
                    f'the snapshots at {self.uri()} belong to stream "{manifest.stream}", but PKM_STREAM is '
                    f'"{self._settings.stream}", whose positions differ: set PKM_STREAM={manifest.stream}, or give '
                    f"the new stream a bucket of its own (PKM_BUCKET)"
                )
            claimed = replace(manifest, execution=manifest.execution + 1)
            if self._write(claimed, replaces=tag):
                self._sweep(claimed)
                return claimed
        raise FencedError(f"{CONFLICTS} other executions of flow {self._flow} started at the same time: stop them")

    def check(self, execution: int) -> None:
        """Raise FencedError when a newer execution than `execution` has claimed the flow."""
        found = self._read()
        if found:
            self._refuse_fenced(found[0], execution)

    def publish(self, content: bytes, *, execution: int, epoch: int, state_digest: str) -> Snapshot:
        """Store a copy of the database and make it the one to resume from; keeps the newest `snapshot_retention`.

        The manifest changes only after the object is stored, so it never names a missing one.

        Raises FencedError when a newer execution has claimed the flow; then nothing is published.
        """
        identity = uuid.uuid4().hex[:12]
        snapshot = Snapshot(
            id=identity,
            execution=execution,
            counter=0,
            epoch=epoch,
            created_at=datetime.now(UTC),
            size_bytes=len(content),
            digest_algorithm=self._seal.algorithm,
            digest=self._seal.digest(identity, content),
            state_digest=state_digest,
        )
        stored = False
        for _ in range(CONFLICTS):
            # A manifest that somebody deleted is written anew: this execution has the state, S3 has none.
            manifest, tag = self._read() or (Manifest(self._flow, self._settings.stream, execution), None)
            self._refuse_fenced(manifest, execution)
            if any(listed.id == identity for listed in manifest.snapshots):
                return snapshot  # our own put succeeded although its answer was lost
            if not stored:
                last = manifest.newest
                counter = last.counter + 1 if last and last.execution == execution else 1
                snapshot = replace(snapshot, counter=counter)
                with self._reaching(snapshot.name):
                    obstore.put(self._objects, self._path(snapshot.name), content)
                stored = True
            listed = (*manifest.snapshots, snapshot)
            keep = self._settings.snapshot_retention
            if self._write(replace(manifest, snapshots=listed[-keep:]), replaces=tag):
                self._delete([expired.name for expired in listed[:-keep]])
                return snapshot
        raise UnreachableError(f"{self.uri()} changed {CONFLICTS} times while it was written")

    def content(self, snapshot: Snapshot) -> bytes:
        """Fetch a snapshot and verify it; nothing has opened it before.

        Raises SnapshotError when it is missing, has another size or digest than the manifest says, or is signed
        while no key is set, or not signed while one is.
        """
        self._seal.refuse_other(snapshot.digest_algorithm, self.uri(snapshot))
        with self._reaching(snapshot.name):
            try:
                content = bytes(obstore.get(self._objects, self._path(snapshot.name)).bytes())
            except FileNotFoundError:
                raise SnapshotError(
                    f"{self.uri(snapshot)} is gone although the manifest lists it: choose another with "
                    f"`pkm snapshots ls` and `pkm snapshots restore ID`"
                ) from None
        if len(content) != snapshot.size_bytes:
            raise self._damaged(snapshot, f"has {len(content)} bytes instead of {snapshot.size_bytes}")
        if not self._seal.matches(snapshot.id, content, snapshot.digest):
            raise self._damaged(snapshot, f"does not match its {snapshot.digest_algorithm} digest")
        return content

    def choose(self, snapshot_id: str) -> Manifest:
        """Make the next execution resume from `snapshot_id` (a savepoint), and fence the running one.

        No snapshot is dropped: the chosen one moves to the end of the list.

        Raises SnapshotError when there is no such snapshot.
        """
        for _ in range(CONFLICTS):
            found = self._read()
            manifest = found[0] if found else None
            chosen = next((one for one in manifest.snapshots if one.id == snapshot_id), None) if manifest else None
            if found is None or manifest is None or chosen is None:
                known = ", ".join(one.id for one in manifest.snapshots) if manifest else ""
                raise SnapshotError(f'flow {self._flow} has no snapshot "{snapshot_id}": it has {known or "none"}')
            others = tuple(one for one in manifest.snapshots if one is not chosen)
            moved = replace(manifest, execution=manifest.execution + 1, snapshots=(*others, chosen))
            if self._write(moved, replaces=found[1]):
                return moved
        raise FencedError(f"{CONFLICTS} executions of flow {self._flow} started at the same time: stop them")

    def _path(self, name: str) -> str:
        return f"{PREFIX}/{self._flow}/{name}"

    def _refuse_fenced(self, manifest: Manifest, execution: int) -> None:
        if manifest.execution != execution:
            raise FencedError(
                f"execution {execution} of flow {self._flow} was superseded: execution {manifest.execution} has "
                f"claimed {self.uri()}, so this one stops and publishes nothing more"
            )

    def _damaged(self, snapshot: Snapshot, what: str) -> SnapshotError:
        return SnapshotError(
            f"{self.uri(snapshot)} {what}, so it was not opened: if the key is right, choose another with "
            f"`pkm snapshots ls` and `pkm snapshots restore ID`"
        )

    def _read(self) -> tuple[Manifest, str | None] | None:
        with self._reaching("manifest.json"):
            try:
                result = obstore.get(self._objects, self._path("manifest.json"))
                content = bytes(result.bytes())
            except FileNotFoundError:
                return None
        return from_json(content, self._seal, flow=self._flow, uri=self.uri()), result.meta["e_tag"]

    def _write(self, manifest: Manifest, *, replaces: str | None) -> bool:
        """Publish the manifest unless it changed since `replaces` was read; tell whether it was published."""
        content = to_json(manifest, self._seal)
        mode: PutMode = "create" if replaces is None else {"e_tag": replaces}
        with self._reaching("manifest.json"):
            try:
                obstore.put(self._objects, self._path("manifest.json"), content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def _sweep(self, claimed: Manifest) -> None:
        """Delete what executions before `claimed` stored but never published: they can't publish it any more."""
        listed = {one.name for one in claimed.snapshots}
        try:
            with self._reaching("objects"):
                names = [
                    meta["path"].rpartition("/")[2]
                    for batch in obstore.list(self._objects, prefix=self._path("").rstrip("/"))
                    for meta in batch
                ]
        except PkmError as error:
            _log.warning("left-over snapshots were not deleted", error=str(error))
            return
        stale = [
            name
            for name in names
            if (match := _OBJECT_NAME.fullmatch(name))
            and int(match["execution"]) < claimed.execution
            and name not in listed
        ]
        self._delete(stale)

    def _delete(self, names: list[str]) -> None:
        # A snapshot too many costs a few kilobytes, so a failure is only logged; the next claim sweeps again.
        if not names:
            return
        try:
            with self._reaching("objects"), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._objects, [self._path(name) for name in names])
        except PkmError as error:
            _log.warning("old snapshots were not deleted", error=str(error))

    @contextlib.contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingError(
                f'there is no bucket "{self._settings.bucket}": create it with `pkm init`, or set PKM_BUCKET'
            ) from error
        except (BaseError, OSError) as error:
            reason = str(error).partition("\n")[0][:300]
            raise UnreachableError(
                f"s3://{self._settings.bucket}/{self._path(name)} can't be used: {reason}"
            ) from error
