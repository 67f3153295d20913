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
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from core import aws
from core.errors import FencedError, MissingError, PkmError, SnapshotError, UnreachableError
from core.recovery.fit import UNKNOWN, FlowShape, refuse_misfit
from core.recovery.manifest import OBJECT_NAME, Manifest, Seal, Snapshot, from_json, retained, to_json, unknown_to
from core.recovery.savepoints import find, forgotten, saved
from core.settings import Settings

if TYPE_CHECKING:
    from obstore import PutMode

__all__ = ["SnapshotStore"]

PREFIX = "snapshots"
# Each conflict means that another execution won a round; that many in a row is a crash loop, not a race.
CONFLICTS = 20
_FLOW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_log = structlog.get_logger(module=__name__)


class SnapshotStore:
    """The snapshots of one flow. Any number of processes may have one at the same time; belongs to one thread.

    All methods raise UnreachableError when S3 fails after its retries, and SnapshotError when the manifest is
    damaged, forged, older than one that this object has seen, or signed with another key than `PKM_SNAPSHOT_KEY`.
    """

    def __init__(self, settings: Settings, *, flow: str) -> None:
        if not _FLOW_NAME.fullmatch(flow):
            raise ValueError(f'"{flow}" can\'t name a flow: use letters, digits, "-" and "_"')
        self._settings = settings
        self._flow = flow
        self._objects = aws.object_store(settings)
        self._seen_revision = 0
        self._published = (0, 0)
        key = settings.snapshot_key
        self._seal = Seal(flow=flow, key=key.get_secret_value().encode() if key else None)

    def uri(self, snapshot: Snapshot | None = None) -> str:
        """Name the manifest, or one snapshot, as people and other tools do."""
        return f"s3://{self._settings.bucket}/{self._path(snapshot.name if snapshot else 'manifest.json')}"

    def manifest(self) -> Manifest | None:
        """Read and verify the manifest; None when the flow never ran."""
        found = self._read()
        return found[0] if found else None

    def claim(self, shape: FlowShape = UNKNOWN) -> Manifest:
        """Take over the flow for a new execution, and fence all older ones; returns the manifest as claimed.

        Raises SnapshotError, and fences nobody, when the newest snapshot belongs to another stream, to another number
        of source partitions or to other steps than `shape` has (unless `PKM_ACCEPT_CHANGED_STEPS` is set), and when
        the manifest is older than the objects beside it; MissingError when there is no bucket.
        """
        for _ in range(CONFLICTS):
            names = self._names()
            found = self._read()
            manifest, tag = found or (Manifest(self._flow, self._settings.stream, 0), None)
            self._refuse_played_back(found[0] if found else None, names)
            self._refuse_other_stream(manifest)
            if manifest.newest:
                refuse_misfit(
                    manifest.newest.shape,
                    shape,
                    uri=self.uri(manifest.newest),
                    accepted=self._settings.accept_changed_steps,
                )
            claimed = self._revised(manifest, execution=manifest.execution + 1, shape=shape)
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
        """Store a copy of the database and make it the one to resume from; drops what retention does not keep.

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
                last = max((one.counter for one in manifest.snapshots if one.execution == execution), default=0)
                if self._published[0] == execution:  # somebody may have deleted the manifest
                    last = max(last, self._published[1])
                snapshot = replace(snapshot, counter=last + 1, shape=manifest.shape)
                with self._reaching(snapshot.name):
                    obstore.put(self._objects, self._path(snapshot.name), content)
                stored = True
            listed = (*manifest.snapshots, snapshot)
            kept = retained(
                listed,
                now=datetime.now(UTC),
                count=self._settings.snapshot_retention,
                age=timedelta(hours=self._settings.snapshot_retention_hours),
            )
            if self._write(self._revised(manifest, snapshots=kept), replaces=tag):
                self._published = (execution, snapshot.counter)
                self._delete([one.name for one in listed if one not in kept])
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

    def choose(self, snapshot: str, shape: FlowShape = UNKNOWN, *, force: bool = False) -> Manifest:
        """Make the next execution resume from `snapshot` (an id, or a savepoint's name), and fence the running one.

        No snapshot is dropped: the chosen one moves to the end of the list. Its content is verified before.

        Raises SnapshotError when there is no such snapshot, when it is damaged or forged, and when it does not fit:
        another stream or number of source partitions always, other steps or a manifest that is older than the objects
        beside it unless `force` is set.
        """
        for _ in range(CONFLICTS):
            names = self._names()
            manifest, tag = self._read() or (Manifest(self._flow, self._settings.stream, 0), None)
            chosen = find(manifest, snapshot)
            self._refuse_other_stream(manifest)
            refuse_misfit(chosen.shape, shape, uri=self.uri(chosen), accepted=force)
            if not force:
                self._refuse_played_back(manifest, names)
            self.content(chosen)
            executions = [int(match["execution"]) for name in names if (match := OBJECT_NAME.fullmatch(name))]
            others = tuple(one for one in manifest.snapshots if one is not chosen)
            # What was accepted once is not asked again when the flow starts.
            accepted = replace(chosen, shape=shape) if shape.steps else chosen
            moved = self._revised(
                manifest, execution=max([manifest.execution, *executions]) + 1, snapshots=(*others, accepted)
            )
            if self._write(moved, replaces=tag):
                return moved
        raise FencedError(f"{CONFLICTS} executions of flow {self._flow} started at the same time: stop them")

    def save(self, name: str) -> Snapshot:
        """Make the newest snapshot a savepoint called `name`, which retention never drops; disturbs no running flow.

        Raises SnapshotError when there is no snapshot yet, or the name is taken or is none.
        """
        return self._rename(saved, name)

    def forget(self, name: str) -> Snapshot:
        """Take a savepoint's name away: it becomes a snapshot that retention may drop.

        Raises SnapshotError when there is no such savepoint.
        """
        return self._rename(forgotten, name)

    def _rename(self, rename: Callable[[Manifest, str], Snapshot], name: str) -> Snapshot:
        for _ in range(CONFLICTS):
            manifest, tag = self._read() or (Manifest(self._flow, self._settings.stream, 0), None)
            renamed = rename(manifest, name)
            snapshots = tuple(renamed if one.id == renamed.id else one for one in manifest.snapshots)
            if self._write(self._revised(manifest, snapshots=snapshots), replaces=tag):
                return renamed
        raise UnreachableError(f"{self.uri()} changed {CONFLICTS} times while it was written")

    def _path(self, name: str) -> str:
        return f"{PREFIX}/{self._flow}/{name}"

    def _refuse_fenced(self, manifest: Manifest, execution: int) -> None:
        if manifest.execution != execution:
            raise FencedError(
                f"execution {execution} of flow {self._flow} was superseded: execution {manifest.execution} has "
                f"claimed {self.uri()}, so this one stops and publishes nothing more"
            )

    def _refuse_other_stream(self, manifest: Manifest) -> None:
        if manifest.stream != self._settings.stream:
            raise SnapshotError(
                f'the snapshots at {self.uri()} belong to stream "{manifest.stream}", but PKM_STREAM is '
                f'"{self._settings.stream}", whose positions differ: set PKM_STREAM={manifest.stream}, or give '
                f"the new stream a bucket of its own (PKM_BUCKET)"
            )

    def _refuse_played_back(self, manifest: Manifest | None, names: list[str]) -> None:
        newer = unknown_to(manifest, names)
        if newer:
            raise SnapshotError(
                f"{self.uri()} is {'older than' if manifest else 'gone, but there is'} "
                f"{self._path(newer)}: somebody put an old one back or deleted it. Put the newest version of it "
                f"back; or go on from a snapshot that it lists with `pkm snapshots restore ID --force`"
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
        manifest = from_json(content, self._seal, flow=self._flow, uri=self.uri())
        if manifest.revision < self._seen_revision:
            raise SnapshotError(
                f"{self.uri()} has revision {manifest.revision}, but this process has seen {self._seen_revision}: "
                f"somebody put an old one back; put the newest version of it back"
            )
        self._seen_revision = manifest.revision
        return manifest, result.meta["e_tag"]

    def _revised(self, manifest: Manifest, **changes: Any) -> Manifest:
        return replace(manifest, revision=max(manifest.revision, self._seen_revision) + 1, **changes)

    def _write(self, manifest: Manifest, *, replaces: str | None) -> bool:
        """Publish the manifest unless it changed since `replaces` was read; tell whether it was published."""
        content = to_json(manifest, self._seal)
        mode: PutMode = "create" if replaces is None else {"e_tag": replaces}
        with self._reaching("manifest.json"):
            try:
                obstore.put(self._objects, self._path("manifest.json"), content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        self._seen_revision = manifest.revision
        return True

    def _names(self) -> list[str]:
        with self._reaching("objects"):
            return [
                meta["path"].rpartition("/")[2]
                for batch in obstore.list(self._objects, prefix=self._path("").rstrip("/"))
                for meta in batch
            ]

    def _sweep(self, claimed: Manifest) -> None:
        """Delete what executions before `claimed` stored but never published: they can't publish it any more."""
        listed = {one.name for one in claimed.snapshots}
        try:
            names = self._names()
        except PkmError as error:
            _log.warning("left-over snapshots were not deleted", error=str(error))
            return
        stale = [
            name
            for name in names
            if (match := OBJECT_NAME.fullmatch(name))
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
            raise self._no_bucket() from error
        except (BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            reason = str(error).partition("\n")[0][:300]
            raise UnreachableError(
                f"s3://{self._settings.bucket}/{self._path(name)} can't be used: {reason}"
            ) from error

    def _no_bucket(self) -> MissingError:
        return MissingError(
            f'there is no bucket "{self._settings.bucket}": create it with `pkm init`, or set PKM_BUCKET'
        )
