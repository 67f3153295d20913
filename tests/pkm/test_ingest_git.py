"""`pkm ingest git` as a person or a script runs it, also when it is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import obstore
import orjson
import pytest

from core import aws
from core.settings import Settings
from faults.proxy import Fault, fault_proxy
from git_servers import BareRepository, git_daemon, http_backend
from github_server import github_server

PKM = Path(sys.executable).with_name("pkm")
SECONDS = 120


def command(*arguments: str, **variables: str) -> Any:
    return {
        "args": [str(PKM), "ingest", "git", *arguments],
        "env": {**os.environ, "COLUMNS": "120", "PKM_ALLOW_PRIVATE_ADDRESSES": "1", **variables},
    }


def pkm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    started = command(*arguments, **variables)
    return subprocess.run(**started, capture_output=True, text=True, timeout=SECONDS, check=False)


def objects(settings: Settings, prefix: str) -> list[str]:
    return [entry["path"] for page in obstore.list(aws.object_store(settings), prefix) for entry in page]


@pytest.fixture
def repository(tmp_path: Path) -> BareRepository:
    (tmp_path / "srv").mkdir()
    made = BareRepository(tmp_path / "srv" / "notes.git")
    made.commit({f"docs/{number}.md": b"# Note %d\n" % number for number in range(30)} | {"logo.png": b"\x89PNG"})
    return made


@pytest.fixture
def stream(settings: Settings) -> Any:
    client = aws.kinesis_client(settings)
    client.create_stream(StreamName=settings.stream, ShardCount=1)
    client.get_waiter("stream_exists").wait(StreamName=settings.stream, WaiterConfig={"Delay": 1})
    return client


def events(client: Any, settings: Settings) -> list[str]:
    shard = client.list_shards(StreamName=settings.stream)["Shards"][0]["ShardId"]
    iterator = client.get_shard_iterator(StreamName=settings.stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    found = client.get_records(ShardIterator=iterator["ShardIterator"], Limit=1_000)["Records"]
    return [orjson.loads(record["Data"])["event_id"] for record in found]


def test_a_run_that_is_killed_between_s3_and_the_stream_is_completed_by_the_next(
    settings: Settings, stream: Any, repository: BareRepository, aws_environment: dict[str, str]
) -> None:
    with git_daemon(repository.path.parent) as server, fault_proxy(aws_environment["AWS_ENDPOINT_URL"]) as proxy:
        proxy.rules.append(Fault("hold", service="kinesis", operation="PutRecords"))
        address = f"{server}/notes.git"
        with subprocess.Popen(
            **command(address, AWS_ENDPOINT_URL_KINESIS=proxy.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert proxy.held.wait(60), process.communicate(timeout=30)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        stored = objects(settings, "bronze/raw/")
        assert len(stored) == 30
        # What the proxy holds is let go only now: nothing of it may count as announced.
        proxy.rules.clear()
        proxy.release.set()
        time.sleep(0.2)
        assert objects(settings, "producers/") == []

        done = pkm(address, "--json")
        assert done.returncode == 0, done.stderr
        summary = orjson.loads(done.stdout)
        assert (summary["announced"], summary["uploaded"], summary["already_there"]) == (30, 0, 30)
        assert sorted(objects(settings, "bronze/raw/")) == sorted(stored)
        assert len(set(events(stream, settings))) == 30
        again = orjson.loads(pkm(address, "--json").stdout)
        assert (again["announced"], again["compared"]) == (0, "nothing new since the last run")


def test_the_summary_says_what_was_left_alone_and_errors_are_one_line_without_secrets(
    settings: Settings, stream: Any, repository: BareRepository
) -> None:
    done = pkm(str(repository.path), "--path", "docs/1*.md", "--path", "*.png")
    assert done.returncode == 0, done.stderr
    assert '{"kind that is not read":1}' in done.stdout
    assert "announced     11" in " ".join(done.stdout.split("  ")) or "11" in done.stdout
    with http_backend(repository.path.parent) as backend:
        backend.password = "ann:right"
        address = backend.url.replace("http://", "http://ann:s3cret@") + "/notes.git"
        refused = pkm(address)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: ")
        assert len(refused.stderr.splitlines()) == 1
        assert "s3cret" not in refused.stderr + refused.stdout
    forbidden = pkm("https://169.254.169.254/latest/meta-data", PKM_ALLOW_PRIVATE_ADDRESSES="0")
    assert forbidden.returncode == 1
    assert "is not a public address" in forbidden.stderr


def test_all_repositories_of_an_owner_are_ingested_and_an_empty_one_is_named(
    settings: Settings, stream: Any, repository: BareRepository
) -> None:
    with github_server() as server:
        server.repositories = {
            "ann/empty": BareRepository(repository.path.parent / "empty.git"),
            "ann/notes": repository,
            "ann/second": repository,
        }
        done = pkm("github:ann", "--path", "docs/1.md", "--json", PKM_GITHUB_URL=server.url)
    assert done.returncode == 1
    assert "HTTP 409, Git Repository is empty" in done.stderr
    assert [(row["repository"].rpartition("/")[2], row["announced"]) for row in orjson.loads(done.stdout)] == [
        ("notes", 1),
        ("second", 1),
    ]
