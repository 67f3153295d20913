"""The flow is killed and loses its machine: nothing is lost, nothing doubled, the windows are those of a calm run."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from core.records import event_identity, note_identity
from core.recovery.store import SnapshotStore
from core.settings import Settings, load_settings
from loopback import cluster_addresses
from pkm.initialise import initialise

NOTES = 120
# Small windows, so that a test of a minute sees several close.
WINDOWS = {"PKM_WINDOW_SECONDS": "4", "PKM_LATENESS_SECONDS": "1"}


def send_slowly(lakehouse: Any, *, notes: int, pause: float, stop: threading.Event) -> None:
    """Announce notes of three kinds of source one by one, each with an object of its own."""
    for number in range(notes):
        source_type = ("git", "web", "agent")[number % 3]
        path = f"notes/{number}.md"
        content = f"# Note {number}\n\nMarie Curie met Niels Bohr in Paris on day {number}.\n".encode()
        event_id = event_identity(source_type, path, content)
        key = f"bronze/raw/{source_type}/{event_id}"
        lakehouse.put(key, content)
        lakehouse.send(
            {
                "event_id": event_id,
                "note_id": note_identity(source_type, path),
                "source_type": source_type,
                "content_size": len(content),
                "metadata": {"path": path},
                "timestamp": "2026-11-23T08:00:00Z",
                "s3_key": key,
            }
        )
        if stop.wait(pause):
            return


def windows_of(lakehouse: Any) -> list[dict[str, Any]]:
    rows = lakehouse.table("silver.metrics")
    return sorted(rows, key=lambda row: (row["window_start"], row["source_type"]))


def calm_twin(lakehouse: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """A second lakehouse over the same stream and objects, whose flow nobody disturbs."""
    import obstore

    from core import aws

    bucket = f"{lakehouse.settings.bucket}-calm"
    for name, value in {
        "PKM_BUCKET": bucket,
        "PKM_CATALOG": "sql",
        "PKM_CATALOG_URI": f"sqlite:///{tmp_path}/catalog.db",
        "PKM_RECOVERY_DIR": f"{lakehouse.settings.recovery_dir}-calm",
    }.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    settings: Settings = load_settings()
    initialise(settings)
    source, target = aws.object_store(lakehouse.settings), aws.object_store(settings)
    for page in obstore.list(source, "bronze/raw/"):
        for entry in page:
            obstore.put(target, entry["path"], obstore.get(source, entry["path"]).bytes())
    return type(lakehouse)(settings, settings.recovery_dir)


@pytest.mark.timeout(540)
def test_three_kills_and_an_empty_disk_each_time_lose_and_double_nothing(
    lakehouse: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name, value in WINDOWS.items():
        monkeypatch.setenv(name, value)
    stop = threading.Event()
    sender = threading.Thread(
        target=send_slowly, args=(lakehouse,), kwargs={"notes": NOTES, "pause": 0.3, "stop": stop}, daemon=True
    )
    sender.start()

    def bronze() -> int:
        return len(lakehouse.table("bronze.notes", columns=("event_id",)))

    def snapshot_epoch() -> int:
        manifest = SnapshotStore(lakehouse.settings, flow="knowledge").manifest()
        return manifest.newest.epoch if manifest and manifest.newest else 0

    # First life: dies as soon as anything is committed.
    process = lakehouse.start("-w", "2")
    lakehouse.wait_for(lambda: bronze() > 0 or process.poll() is not None, what="the first commit")
    assert process.poll() is None, process.communicate()[0].decode()[-4000:]
    lakehouse.kill(process)
    # Second life: dies in the middle, after a snapshot of its own.
    before, rows = snapshot_epoch(), bronze()
    process = lakehouse.start()
    lakehouse.wait_for(lambda: snapshot_epoch() > before and bronze() > rows, what="a snapshot of the second life")
    time.sleep(1.7)
    lakehouse.kill(process)
    # Third life: dies between two commits.
    rows = bronze()
    process = lakehouse.start("-w", "2")
    lakehouse.wait_for(lambda: bronze() > rows, what="a commit of the third life")
    time.sleep(0.4)
    lakehouse.kill(process)
    sender.join(timeout=120)
    stop.set()
    assert not sender.is_alive()
    lakehouse.run_until_caught_up()

    bronze_rows = lakehouse.table("bronze.notes")
    assert len(bronze_rows) == len({row["event_id"] for row in bronze_rows}) == NOTES
    assert lakehouse.table("bronze.failures") == []
    silver = lakehouse.table("silver.notes")
    note_ids = {row["note_id"] for row in silver}
    assert len(silver) == len(note_ids) == NOTES
    chunks = lakehouse.chunks()
    assert len({row["id"] for row in chunks}) == len(chunks) == sum(row["chunk_count"] for row in silver)
    assert {row["note_id"] for row in chunks} == note_ids
    assert {key.rpartition("/")[2] for key in lakehouse.index_keys("note/")} == note_ids

    twin = calm_twin(lakehouse, monkeypatch, tmp_path)
    # Windows count what was extracted; models add nothing to them.
    twin.run_until_caught_up(PKM_ENRICH="none")
    undisturbed = windows_of(twin)
    assert len(undisturbed) > 6
    assert sum(row["count"] for row in undisturbed) == NOTES
    assert windows_of(lakehouse) == undisturbed


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_two_processes_share_the_stream(lakehouse: Any) -> None:
    send_slowly(lakehouse, notes=40, pause=0.0, stop=threading.Event())
    addresses = cluster_addresses(2)
    second_process = lakehouse.start("-i", "1", "-a", addresses, PKM_UNTIL_CAUGHT_UP="1")
    lakehouse.run_until_caught_up("-i", "0", "-a", addresses)
    printed, _ = second_process.communicate(timeout=60)
    assert second_process.returncode == 0, printed.decode()[-4000:]

    assert len(lakehouse.table("bronze.notes")) == 40
    assert len({row["note_id"] for row in lakehouse.table("silver.notes")}) == 40
    assert {row["note_id"] for row in lakehouse.chunks()} == {
        row["note_id"] for row in lakehouse.table("silver.notes")
    }
    assert sum(row["count"] for row in lakehouse.table("silver.metrics")) == 40
