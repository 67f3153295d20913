"""Data files that are on their way to S3 when the engine has the state that speaks of them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from core import aws
from core.deferred import settled
from core.errors import SnapshotError, UnreachableError
from core.markers import Marker
from core.recovery.under_way import Begun
from core.settings import Settings
from faults.proxy import Fault, FaultProxy, fault_proxy
from iceberg_commits import QUICK, failure, load, messages, window
from sinks import iceberg_catalog
from sinks.iceberg import TablePartition, TableState
from sinks.iceberg_commit import Committer, PendingCommit
from sinks.iceberg_epoch import Epoch
from sinks.iceberg_files import encode_rows, put_files
from sinks.iceberg_tables import BRONZE_FAILURES, SILVER_METRICS
from snapshots import eventually, writes_told_in

FILES = "/data/.*parquet"


@pytest.fixture
def proxy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(iceberg_catalog, "TABLES", (BRONZE_FAILURES, SILVER_METRICS))
    iceberg_catalog.create_tables(settings)
    with fault_proxy(aws.endpoint("s3") or "") as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", between.url)
        yield between
        between.release.set()


@pytest.fixture
def copier(tmp_path: Path) -> Iterator[Path]:
    """The directory that a copier would look at."""
    with writes_told_in(tmp_path):
        yield tmp_path


def opened(settings: Settings, state: TableState | None = None) -> TablePartition:
    committer = Committer(load(settings), key_columns=(), retries=QUICK)
    return TablePartition(
        load(settings), BRONZE_FAILURES, commit=committer.commit, resume=committer.resume, resume_state=state
    )


def never(_: PendingCommit) -> None:
    """Commit nothing: the process is killed before."""
    threading.Event().wait()


def test_the_state_is_known_before_the_files_are_stored_and_resumes_once_they_are(
    settings: Settings, proxy: FaultProxy, copier: Path
) -> None:
    proxy.rules = [Fault("hold", operation="PUT", path=FILES)]
    part = TablePartition(load(settings), BRONZE_FAILURES, commit=never)
    part.write_batch([failure(1), failure(2)])
    state = pickle.loads(pickle.dumps(part.snapshot()))
    begun = Begun(copier)
    assert proxy.held.wait(30)
    assert not begun.stored, "a snapshot would speak of a file that is not there"
    assert not proxy.passed["s3 PUT"]
    proxy.release.set()
    eventually(lambda: begun.stored, "the file was not stored")
    begun.close()

    opened(settings, state).close()
    assert messages(settings) == [1, 2]


def test_where_no_copier_looks_the_state_waits_for_the_files(settings: Settings, proxy: FaultProxy) -> None:
    proxy.rules = [Fault("hold", operation="PUT", path=FILES)]
    part = opened(settings)
    part.write_batch([failure(1)])
    part.snapshot()
    # Nothing came in this epoch, but its state speaks of the one before.
    state, pickled = part.snapshot(), threading.Event()
    waiting = threading.Thread(target=lambda: pickle.dumps(state) and pickled.set())
    waiting.start()
    assert proxy.held.wait(30)
    assert not pickled.wait(0.3)
    proxy.release.set()
    waiting.join(30)
    assert pickled.is_set()
    part.close()
    assert messages(settings) == [1]


def test_a_response_that_is_lost_leaves_one_file_of_one_name(
    settings: Settings, proxy: FaultProxy, copier: Path
) -> None:
    # More often than the client itself tries, so that the file is written again by us.
    proxy.rules = [Fault("error-after", operation="PUT", path=FILES, times=12)]
    part = opened(settings)
    part.write_batch([failure(1)])
    state = settled(part.snapshot())
    part.close()
    assert proxy.faults["error-after"] == 12
    assert messages(settings) == [1]
    found = aws.s3_client(settings).list_objects_v2(Bucket=settings.bucket, Prefix="warehouse/")["Contents"]
    files = [f"s3://{settings.bucket}/{item['Key']}" for item in found if item["Key"].endswith(".parquet")]
    assert files == [file["file_path"] for pending in state.pending for file in pending.data_files]
    begun = Begun(copier)
    eventually(lambda: begun.stored, "the copier was not told")
    begun.close()


def test_files_that_s3_never_takes_end_the_flow_and_nothing_is_published(
    settings: Settings, proxy: FaultProxy, copier: Path
) -> None:
    settings = settings.model_copy(update={"retry_seconds": 1, "request_seconds": 1})
    proxy.rules = [Fault("slow-down", operation="PUT", path=FILES)]
    part = opened(settings)
    part.write_batch([failure(1)])
    settled(part.snapshot())
    with pytest.raises(UnreachableError, match=r"a data file of bronze\.failures can't be written"):
        part.close()
    begun = Begun(copier)
    # A future wakes who waits for it before it tells the others.
    eventually(lambda: begun.failed, "the copier was not told")
    assert not begun.stored
    begun.close()
    proxy.rules = []
    assert messages(settings) == []


@pytest.mark.usefixtures("proxy")
def test_a_commit_whose_file_is_gone_is_refused_unless_it_is_made(settings: Settings) -> None:
    epoch = Epoch(load(settings), BRONZE_FAILURES, flush_bytes=1 << 20)
    epoch.add(failure(1))
    sealed, _ = epoch.seal(Marker())
    assert sealed is not None
    state = TableState((sealed.pending,), 1)
    with pytest.raises(SnapshotError, match=r"parquet, which the recovery snapshot names, is gone, and table bronze"):
        opened(settings, state)
    assert messages(settings) == []

    put_files(load(settings), sealed.contents)
    opened(settings, state).close()
    assert messages(settings) == [1]
    (file,) = sealed.pending.data_files
    key = file["file_path"].removeprefix(f"s3://{settings.bucket}/")
    aws.s3_client(settings).delete_object(Bucket=settings.bucket, Key=key)
    opened(settings, state).close()


def test_of_several_files_the_one_that_failed_is_tried_again(settings: Settings, proxy: FaultProxy) -> None:
    proxy.rules = [Fault("slow-down", operation="PUT", path="/data/two", times=12)]
    table = load(settings)
    names = [f"{table.location()}/data/{name}.parquet" for name in ("one", "two", "three")]
    put_files(table, {name: pa.py_buffer(name.encode()) for name in names})
    assert proxy.faults["slow-down"] == 12
    for name in names:
        with table.io.new_input(name).open() as stored:
            assert stored.read() == name.encode()


def test_encoding_asks_nobody(settings: Settings, proxy: FaultProxy) -> None:
    table = load(settings)
    row = failure(1).row
    assert row is not None
    proxy.passed.clear()
    encoded = encode_rows(table, [row])
    assert not proxy.passed
    put_files(table, encoded.contents)
    assert dict(proxy.passed) == {"s3 PUT": 1}


@pytest.mark.usefixtures("proxy")
def test_a_large_epoch_keeps_only_its_last_part_in_memory(settings: Settings) -> None:
    epoch = Epoch(load(settings, "silver.metrics"), SILVER_METRICS, flush_bytes=1)
    for count in range(1, 4):
        epoch.add(window("git", count))
    epoch.add(window("web", 1))
    sealed, _ = epoch.seal(Marker())
    assert sealed is not None
    assert not sealed.contents, "parts are stored when they are full, and when rows of them are replaced"
    assert len(sealed.pending.data_files) == 2
