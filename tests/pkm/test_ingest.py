"""`pkm ingest files`, `s3` and `api` as a person or a script runs them, and as the machine ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from core import aws
from core.settings import Settings
from faults.proxy import Fault, fault_proxy
from json_api import Api, by_link, serving_api
from pkm.initialise import initialise
from sinks import iceberg_catalog

PKM = Path(sys.executable).with_name("pkm")
SECONDS = 120


@pytest.fixture
def served() -> Iterator[Api]:
    with serving_api() as api:
        api.answer = by_link
        yield api


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    root = tmp_path / "vault"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.md").write_text(f"# Note {number}\n")
    return root


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "PKM_ALLOW_PRIVATE_ADDRESSES": "1", "PKM_ENRICH": "none", **variables}


def pkm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PKM), *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def summary_of(*arguments: str, **variables: str) -> dict[str, Any]:
    done = pkm("ingest", *arguments, "--json", **variables)
    assert done.returncode == 0, done.stderr
    return dict(orjson.loads(done.stdout))


def raw_objects(settings: Settings) -> set[str]:
    found = aws.s3_client(settings).list_objects_v2(Bucket=settings.bucket, Prefix="bronze/").get("Contents", [])
    return {entry["Key"] for entry in found}


def killed_before_it_announces(*arguments: str) -> None:
    """Run a producer whose stream does not answer, and kill it once it has begun to announce."""
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        proxy.rules = [Fault("hang", operation="PutRecords")]
        process = subprocess.Popen(
            [str(PKM), "ingest", *arguments], env=environment(AWS_ENDPOINT_URL_KINESIS=proxy.url)
        )
        ends = time.monotonic() + SECONDS
        while not proxy.faults["hang"]:
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_a_producer_that_is_killed_before_it_announces_is_completed_by_a_rerun_and_a_rerun_of_that_adds_nothing(
    settings: Settings, vault: Path, served: Api
) -> None:
    initialise(settings)
    s3 = aws.s3_client(settings)
    s3.create_bucket(Bucket="dropped")
    for number in range(3):
        s3.put_object(Bucket="dropped", Key=f"inbox/{number}.md", Body=b"# Dropped %d" % number)
    producers = {
        ("files", str(vault)): (4, 4),
        ("s3", "s3://dropped/inbox/"): (3, 0),
        ("api", f"{served.url}/items", "--items", "$.data[*]", "--content", "$.text"): (6, 6),
    }
    for arguments, (count, announced_again) in producers.items():
        before = raw_objects(settings)
        killed_before_it_announces(*arguments)
        stored = raw_objects(settings)
        assert len(stored - before) == count
        completed = summary_of(*arguments)
        assert (completed["announced"], completed["uploaded"], completed["already_there"]) == (count, 0, count)
        again = summary_of(*arguments)
        assert (again["announced"], again["uploaded"]) == (announced_again, 0)
        assert raw_objects(settings) == stored
    done = pkm("run", "--until-caught-up")
    assert done.returncode == 0, done.stderr
    for table in ("bronze.notes", "silver.notes"):
        assert iceberg_catalog.row_count(settings, table) == 13
    assert iceberg_catalog.row_count(settings, "bronze.failures") == 0


def test_a_person_sees_what_was_ingested_by_type_and_what_was_left_alone(settings: Settings, vault: Path) -> None:
    initialise(settings)
    (vault / "page.html").write_text("<p>page</p>")
    (vault / "link.md").symlink_to("/etc/hostname")
    done = pkm("ingest", "files", str(vault), "--name", "ann")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["announced", "5"] in lines
    assert ["left_alone", "1"] in lines
    assert lines[-2:] == [["text/markdown", "4"], ["text/html", "1"]]
    assert done.stderr == f"left alone: {vault}/link.md: is a link that leaves {vault}\n"
    assert summary_of("files", str(vault), "--name", "ann")["already_there"] == 5
    assert summary_of("files", str(vault))["uploaded"] == 5


def test_text_from_standard_input_is_a_note(settings: Settings) -> None:
    initialise(settings)
    done = subprocess.run(
        [str(PKM), "ingest", "files", "-", "--json"],
        input=b"a thought",
        env=environment(),
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    assert orjson.loads(done.stdout)["by_content_type"] == {"text/plain": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("s3", "s3://{bucket}/warehouse/"), "the product's own objects"),
        (("api", "http://127.0.0.1:9/", "--items", "$[*]", "--cursor", "$.at"), "--cursor and --cursor-param"),
    ],
)
def test_what_can_not_be_is_told_in_one_line(settings: Settings, arguments: tuple[str, ...], message: str) -> None:
    done = pkm("ingest", *(argument.format(bucket=settings.bucket) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
