"""`pkm ingest serve` as its own process, for the tests of whatever talks to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest
import requests

from announced import records
from core import aws
from core.settings import Settings, load_settings
from pkm.initialise import initialise

__all__ = ["PKM", "TOKEN", "Served", "make_lake", "serving"]

PKM = Path(sys.executable).with_name("pkm")
TOKEN = "0123456789abcdef0123456789abcdef"
START_SECONDS = 30.0


@dataclass
class Served:
    """A running service, as a client and as whoever looks at it from outside sees it."""

    url: str
    settings: Settings
    process: subprocess.Popen[bytes]
    log: Any
    token: str | None = TOKEN
    session: requests.Session = field(default_factory=requests.Session)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {**({"Authorization": f"Bearer {self.token}"} if self.token else {}), **options.pop("headers", {})}
        return self.session.request(method, self.url + path, headers=headers, timeout=60, **options)

    def post_note(self, *, headers: dict[str, str] | None = None, **note: Any) -> requests.Response:
        return self.request("POST", "/v1/notes", json=note, headers=headers or {})

    def post_file(
        self, content: Any, name: str = "note.md", *, headers: dict[str, str] | None = None, **fields: str
    ) -> requests.Response:
        return self.request("POST", "/v1/files", files={"file": (name, content)}, data=fields, headers=headers or {})

    def state(self, note_id: str) -> dict[str, Any]:
        value: dict[str, Any] = self.request("GET", f"/v1/notes/{note_id}").json()
        return value

    def records(self) -> list[dict[str, Any]]:
        return records(aws.kinesis_client(self.settings), self.settings)

    def keys(self, prefix: str = "") -> list[str]:
        return keys(self.settings, prefix)

    def content(self, key: str) -> bytes:
        return bytes(obstore.get(aws.object_store(self.settings), key).bytes())

    def logged(self) -> str:
        self.log.seek(0)
        text: str = self.log.read().decode()
        return text

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 15.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def keys(settings: Settings, prefix: str = "") -> list[str]:
    listing = obstore.list(aws.object_store(settings), prefix).collect()
    return sorted(entry["path"] for entry in listing)


@contextlib.contextmanager
def serving(settings: Settings, *options: str, token: str | None = TOKEN, **variables: str) -> Iterator[Served]:
    """Run the service on a free port; it ends with the block."""
    environment = {
        **os.environ,
        "PKM_BUCKET": settings.bucket,
        "PKM_STREAM": settings.stream,
        "PKM_LOG_FORMAT": "json",
        **({"PKM_SERVE_TOKENS": f"agents:{token}"} if token else {}),
        **variables,
    }
    with tempfile.TemporaryFile() as log:
        command = [PKM, "ingest", "serve", "--port", "0", *options]
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            yield Served(_address(process, log), settings, process, log, token)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Any) -> str:
    deadline = START_SECONDS
    while deadline > 0:
        log.seek(0)
        text = log.read().decode()
        if found := re.search(r"serving (http://\S+),", text):
            return found[1]
        assert process.poll() is None, f"the service ended: {text}"
        deadline -= 0.05
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise AssertionError(f"the service does not listen: {text}")


def make_lake(aws_environment: dict[str, str], patch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Create bucket, stream with one shard, tables and stores in an empty local AWS."""
    reset = urllib.request.Request(f"{aws_environment['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=30).close()
    name = uuid.uuid4().hex[:12]
    for key, value in {
        **aws_environment,
        "PKM_BUCKET": f"bucket-{name}",
        "PKM_STREAM": f"stream-{name}",
        "PKM_SHARDS": "1",
        "PKM_ENRICH": "none",
        "PKM_RECOVERY_DIR": f"/dev/shm/pkm-test-{name}",
        **variables,
    }.items():
        patch.setenv(key, value)
    load_settings.cache_clear()
    settings = load_settings()
    initialise(settings)
    return settings
