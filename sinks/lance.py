"""The vector store on Lance: the sink that writes one row per chunk, and the search.

    lance.output("vectors", notes, settings=settings)

One partition commits. Delivery is exactly once: an epoch is one merge, which replaces the chunks of its notes whole,
and the marker of what it covers follows in the table's metadata. A crash between the two repeats the merge, which
changes nothing the second time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import bytewax.operators as op
import lance
import numpy as np
import pyarrow  # type: ignore[import-untyped]
import structlog
import tenacity
from bytewax.dataflow import Stream, operator
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from core import aws
from core.errors import CommitError, FencedError, MissingError, SettingsError, UnreachableError
from core.first_error import noted
from core.markers import Marker
from core.records import Note, Position, Vector
from core.recovery.ownership import check_ownership
from core.settings import Settings
from core.telemetry import COMMITS
from sinks.closing import CarefulPartition
from sinks.lance_rows import belongs_to, mismatch, positions_of, rows_of, schema_of
from sinks.versions import covered_ids, newest_versions, uncommitted

__all__ = [
    "MARKER",
    "SearchHit",
    "VectorPart",
    "VectorSink",
    "check_dataset",
    "count_chunks",
    "count_notes",
    "create_dataset",
    "note_positions",
    "output",
    "search",
]

MARKER = "pkm.marker"
WRITER = "pkm.writer"
PART = "vectors"
LONGEST_WAIT_SECONDS = 5.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk near a query; `score` is the cosine similarity, 1 for the same direction."""

    note_id: str
    chunk: int
    score: float
    text: str
    source: str


def create_dataset(settings: Settings, *, dimension: int) -> None:
    """Create the dataset for vectors of `dimension` numbers unless it exists; safe to repeat and to race.

    Raises SettingsError when it exists with another dimension, UnreachableError when S3 does not answer.
    """
    try:
        check_dataset(settings, dimension=dimension)
    except MissingError:
        schema = schema_of(dimension)
        try:
            with _faults(settings, "create"):
                lance.write_dataset(
                    schema.empty_table(),
                    settings.vectors_uri,
                    mode="create",
                    storage_options=aws.lance_storage_options(settings),
                )
        except CommitError:
            # Somebody else was faster; what they made must fit.
            check_dataset(settings, dimension=dimension)


def check_dataset(settings: Settings, *, dimension: int) -> None:
    """Check that the dataset exists and holds vectors of `dimension` numbers.

    Raises MissingError or SettingsError that say what to do, UnreachableError when S3 does not answer.
    """
    _check_dimension(settings, _open(settings), dimension)


def search(settings: Settings, vector: Vector, *, k: int) -> list[SearchHit]:
    """Return the `k` chunks nearest to `vector` (shape: dimension of the dataset) by cosine, best first.

    Without an index every row is compared. A vector of zeros has no direction and finds nothing.
    Raises ValueError for k < 1, SettingsError for a vector of another dimension, MissingError, UnreachableError.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    dataset = _open(settings)
    _check_dimension(settings, dataset, len(vector))
    with _faults(settings, "search"):
        rows = dataset.to_table(
            columns=["note_id", "chunk", "text", "metadata", "_distance"],
            nearest={"column": "embedding", "q": np.asarray(vector, np.float32), "k": k, "metric": "cosine"},
        ).to_pylist()
    hits = [
        SearchHit(row["note_id"], row["chunk"], 1.0 - row["_distance"], row["text"], row["metadata"]["source"])
        for row in rows
    ]
    return sorted(hits, key=lambda hit: (-hit.score, hit.note_id, hit.chunk))


def count_chunks(settings: Settings) -> int:
    """Count the rows. Raises MissingError, UnreachableError."""
    dataset = _open(settings)
    with _faults(settings, "count"):
        return int(dataset.count_rows())


def count_notes(settings: Settings) -> int:
    """Count the notes that have at least one chunk. Raises MissingError, UnreachableError."""
    dataset = _open(settings)
    found: set[str] = set()
    with _faults(settings, "count"):
        for batch in dataset.to_batches(columns=["note_id"]):
            found.update(batch.column("note_id").to_pylist())
    return len(found)


def note_positions(settings: Settings) -> dict[str, Position]:
    """Return for each note that has chunks where the record that they are from stands. Raises like `count_notes`."""
    dataset = _open(settings)
    positions: dict[str, Position] = {}
    with _faults(settings, "read"):
        for batch in dataset.to_batches(columns=["note_id", "position"]):
            positions |= positions_of(batch)
    return positions


@operator
def output(step_id: str, up: Stream[Note], *, settings: Settings) -> None:  # noqa: ARG001 - the engine uses step_id
    """Write the chunks of notes; the newest version of a note replaces all chunks of the older ones.

    A note that is deleted or has no text loses all its chunks. One partition, exactly once. The flow stops with
    MissingError before `pkm init`, SettingsError when the model's dimension is not the dataset's, FencedError when
    a newer execution writes, CommitError or UnreachableError when that outlasts all retries.
    """
    keyed = op.key_on("key", up, lambda _: PART)
    op.output("write", keyed, VectorSink(settings))


class VectorSink(FixedPartitionedSink[Note, str]):
    """Writes all notes through one partition, so that an epoch is one commit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def list_parts(self) -> list[str]:
        """Name the one partition."""
        return [PART]

    def build_part(
        self,
        step_id: str,  # noqa: ARG002
        for_part: str,  # noqa: ARG002
        resume_state: str | None,  # noqa: ARG002
    ) -> CarefulPartition[Note, str]:
        """Open the dataset for writing. Its own marker, not the snapshot's, tells what it holds."""
        with noted():
            check_ownership()
            try:
                return CarefulPartition(VectorPart(self._settings))
            except MissingError:
                if self._settings.enrich == "none":
                    return CarefulPartition(NoVectors())
                raise


class NoVectors(StatefulSinkPartition[Note, str]):
    """Stands in for a dataset that was never made, since no note has vectors: there is nothing to write or delete."""

    def write_batch(self, values: list[Note]) -> None:
        """Take notes without chunks."""

    def snapshot(self) -> str:
        """Return an empty marker as JSON."""
        return Marker().to_json()


class VectorPart(StatefulSinkPartition[Note, str]):
    """The one writer of the dataset. The last to open it writes; whoever opened it earlier is fenced."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pending: list[Note] = []
        self._token = uuid.uuid4().hex
        self._dataset = _open(settings)
        self._dimension = _dimension(self._dataset)
        for attempt in _attempts(settings):
            with attempt, _faults(settings, "open"):
                self._claim()
        stored = self._dataset.metadata.get(MARKER)
        self._marker = Marker.from_json(stored) if stored else Marker()

    def write_batch(self, values: list[Note]) -> None:
        """Keep the notes until the epoch ends."""
        self._pending += values

    def snapshot(self) -> str:
        """Commit the epoch and return the marker as JSON."""
        again = covered_ids(self._pending, self._marker)
        stored = self._stored_positions(again) if again else {}
        if lacking := uncommitted(self._pending, self._marker, stored, leaves_nothing=_leaves_nothing):
            self._commit(lacking)
        self._pending.clear()
        return self._marker.to_json()

    def _stored_positions(self, note_ids: list[str]) -> dict[str, Position]:
        for attempt in _attempts(self._settings):
            with attempt, _faults(self._settings, "read"):
                self._dataset.checkout_latest()  # type: ignore[no-untyped-call]
                rows = self._dataset.to_table(columns=["note_id", "position"], filter=belongs_to(note_ids))
        return positions_of(rows)

    def _commit(self, pending: list[Note]) -> None:
        started = time.monotonic()
        newest = newest_versions(pending)
        rows = rows_of(newest.values(), dimension=self._dimension)
        marker = self._marker.advanced(
            (note.event.position for note in pending), commit_number=self._marker.commit_number + 1
        )
        for attempt in _attempts(self._settings):
            with attempt, _faults(self._settings, "commit"):
                self._merge(newest, rows)
                self._dataset.update_metadata({MARKER: marker.to_json()})
        self._marker = marker
        COMMITS.labels(store="vectors").inc()
        _log.debug(
            "vectors committed",
            notes=len(newest),
            chunks=rows.num_rows,
            fragments=len(self._dataset.get_fragments()),
            milliseconds=round((time.monotonic() - started) * 1000),
        )

    def _claim(self) -> None:
        """Make this the writer.

        Metadata alone would not stop a merge that an older writer has begun: the two do not conflict. Restoring the
        newest version does, with everything that was built on an earlier one.
        """
        self._dataset.checkout_latest()  # type: ignore[no-untyped-call]
        self._dataset.update_metadata({WRITER: self._token})
        self._dataset.restore()  # type: ignore[no-untyped-call]

    def _merge(self, note_ids: Iterable[str], rows: pyarrow.Table) -> None:
        """Make the rows all that the dataset has of these notes, in one commit."""
        self._dataset.checkout_latest()  # type: ignore[no-untyped-call]
        if self._dataset.metadata.get(WRITER) != self._token:
            raise FencedError(
                f"{self._settings.vectors_uri} was opened by a newer execution: this one stops; "
                "run only one flow per dataset"
            )
        # No retries inside: a retry has to look again who the writer is.
        (
            self._dataset.merge_insert("id")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(belongs_to(note_ids))
            .conflict_retries(0)
            .execute(rows)
        )


def _leaves_nothing(note: Note) -> bool:
    return note.event.deleted or not note.chunks


def _open(settings: Settings) -> lance.LanceDataset:
    with _faults(settings, "open"):
        return lance.dataset(settings.vectors_uri, storage_options=aws.lance_storage_options(settings))


def _dimension(dataset: lance.LanceDataset) -> int:
    return int(dataset.schema.field("embedding").type.list_size)


def _check_dimension(settings: Settings, dataset: lance.LanceDataset, dimension: int) -> None:
    if _dimension(dataset) != dimension:
        raise SettingsError(mismatch(settings.vectors_uri, _dimension(dataset), dimension))


def _attempts(settings: Settings) -> Iterator[tenacity.AttemptManager]:
    return iter(
        tenacity.Retrying(
            # A process that slept within its first attempt looks once more: it may not be the writer any longer.
            stop=tenacity.stop_after_delay(settings.retry_seconds) & tenacity.stop_after_attempt(2),
            # Full jitter, so that two writers do not meet again and again.
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_SECONDS),
            retry=tenacity.retry_if_exception_type((CommitError, UnreachableError)),
            reraise=True,
        )
    )


@contextmanager
def _faults(settings: Settings, doing: str) -> Iterator[None]:
    """Turn pylance's errors, which are built-in ones with a text, into ours."""
    uri = settings.vectors_uri
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        if "was not found" in text or "NoSuchBucket" in text:
            raise MissingError(f"{uri} does not exist: run `pkm init`") from error
        if "LanceError(IO)" in text or "Generic S3 error" in text:
            raise UnreachableError(f"{uri} can't be reached ({doing}): {_brief(text)}") from error
        raise CommitError(f"{uri} could not be changed ({doing}): {_brief(text)}") from error


def _brief(text: str) -> str:
    # The library adds the place in its own source after the message.
    return text.partition(", /")[0].splitlines()[0]
