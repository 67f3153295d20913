"""The local AWS starts, answers on loopback only, and never outlives who started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest

from core.errors import UnreachableError
from core.settings import Settings
from pkm.stack import environment, local_aws, serve


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UnreachableError, match=str(taken.getsockname()[1])):
            serve(taken.getsockname()[1], until=threading.Event())


def test_the_local_aws_ends_with_its_block() -> None:
    with local_aws() as variables:
        port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
        assert listens(port)
    assert not listens(port)


def test_the_local_aws_ends_when_its_parent_is_killed() -> None:
    script = (
        "import time\nfrom pkm.stack import local_aws\n"
        "with local_aws() as v:\n    print(v['AWS_ENDPOINT_URL'], flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert parent.stdout is not None
    port = int(parent.stdout.readline().strip().rpartition(":")[2])

    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=10)

    deadline = time.monotonic() + 15
    while listens(port):
        assert time.monotonic() < deadline, "the local AWS outlived its parent"
        time.sleep(0.1)


def test_a_child_that_can_not_start_is_told_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "moto.py").write_text("raise ModuleNotFoundError('no such thing as moto here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(UnreachableError, match=r"did not start.*pip install pkm-lakehouse\[local\]"), local_aws():
        pass


def test_glue_refuses_an_update_of_a_table_that_has_changed_meanwhile(
    aws_environment: dict[str, str], settings: Settings
) -> None:
    client = boto3.client("glue", region_name="us-east-1", endpoint_url=aws_environment["AWS_ENDPOINT_URL"])
    client.create_database(DatabaseInput={"Name": "bronze"})
    client.create_table(DatabaseName="bronze", TableInput={"Name": "notes"})
    seen = client.get_table(DatabaseName="bronze", Name="notes")["Table"]["VersionId"]
    client.update_table(DatabaseName="bronze", TableInput={"Name": "notes", "Owner": "one"}, VersionId=seen)
    with pytest.raises(client.exceptions.ConcurrentModificationException):
        client.update_table(DatabaseName="bronze", TableInput={"Name": "notes", "Owner": "two"}, VersionId=seen)
    assert client.get_table(DatabaseName="bronze", Name="notes")["Table"]["Owner"] == "one"


def test_clients_behind_a_proxy_reach_the_stack_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert "NO_PROXY" not in environment(5000)

    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    assert environment(5000)["no_proxy"] == "127.0.0.1"

    monkeypatch.setenv("NO_PROXY", "example.com")
    assert environment(5000)["NO_PROXY"] == "example.com,127.0.0.1"
