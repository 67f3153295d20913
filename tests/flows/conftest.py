"""A whole lakehouse for the tests of the flow: streams to fill, processes to start and kill, stores to read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from core import aws
from core.settings import Settings
from pkm.initialise import initialise
from sinks import iceberg_catalog, slatedb

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS = 240


@dataclass
class Lakehouse:
    """One stream and its stores, and the processes that a test runs on them."""

    settings: Settings
    recovery: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def put(self, key: str, content: bytes) -> None:
        import obstore

        obstore.put(aws.object_store(self.settings), key, content)

    def send(self, *records: dict[str, Any] | bytes) -> None:
        """Put records on the stream in order, by their note id if they have one."""
        client = aws.kinesis_client(self.settings)
        for record in records:
            data = record if isinstance(record, bytes) else orjson.dumps(record)
            key = record.get("note_id", "none") if isinstance(record, dict) else "none"
            client.put_record(StreamName=self.settings.stream, Data=data, PartitionKey=key)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start the flow as a user would: plain bytewax and environment variables."""
        self.recovery.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bytewax.run", "flows.knowledge:flow"),
                *("-r", str(self.recovery), "-s", "1", "-b", "0", *arguments),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "RUST_BACKTRACE": "0", "PKM_LOG_LEVEL": "warning", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.processes.append(process)
        return process

    def run_until_caught_up(self, *arguments: str, **variables: str) -> str:
        """Run the flow to the end of the stream; returns what it printed."""
        process = self.start(*arguments, PKM_UNTIL_CAUGHT_UP="1", **variables)
        printed, _ = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 0, printed.decode()[-4000:]
        return printed.decode()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a flow with SIGKILL, and lose its machine: the recovery folder is gone."""
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        shutil.rmtree(self.recovery)

    @staticmethod
    def wait_for(condition: Callable[[], bool], *, what: str, seconds: float = 90) -> None:
        """Wait until a condition holds; fails with what was waited for."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(0.2)

    def table(self, name: str, **options: Any) -> list[dict[str, Any]]:
        return iceberg_catalog.scan(self.settings, name, **options).to_pylist()

    def chunks(self) -> list[dict[str, Any]]:
        import lance as library

        dataset = library.dataset(self.settings.vectors_uri, storage_options=aws.lance_storage_options(self.settings))
        return dataset.to_table(columns=["id", "note_id", "chunk", "text"]).to_pylist()

    def index_keys(self, prefix: str) -> list[str]:
        return [key for key, _ in slatedb.scan(self.settings, prefix, limit=100_000)]


@pytest.fixture
def lakehouse(settings: Settings) -> Iterator[Lakehouse]:
    """An initialised lakehouse; whatever still runs at the end is killed."""
    initialise(settings)
    world = Lakehouse(settings, settings.recovery_dir)
    yield world
    for process in world.processes:
        process.kill()
        process.communicate(timeout=30)
    shutil.rmtree(world.recovery, ignore_errors=True)
