"""Faults that stay: the flow ends within its patience with one clear error, and the next start loses nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from chaos.world import Layout, World
from core.recovery.store import SnapshotStore
from faults.proxy import Fault, FaultProxy
from sinks import iceberg_catalog

SHORT = {"PKM_REQUEST_SECONDS": "5", "PKM_RETRY_SECONDS": "12"}
# Retries, one last request, the last copy's retries, and the end of the process, on a busy machine.
BOUND_SECONDS = 90.0
OUTAGES = {
    "S3 answers 503": (Fault("slow-down", service="s3"), "s3://|warehouse|table (bronze|silver)"),
    "S3 does not answer": (Fault("hang", service="s3"), "s3://|warehouse|table (bronze|silver)"),
    "Glue is down": (Fault("drop", service="glue"), "table (bronze|silver)"),
    "Glue does not answer": (Fault("hang", service="glue"), "table (bronze|silver)"),
    "Kinesis is down": (Fault("drop", service="kinesis"), 'stream "'),
    "Kinesis answers 503": (Fault("slow-down", service="kinesis"), 'stream "'),
}


def wait_for_snapshot(world: World, process: subprocess.Popen[bytes]) -> None:
    store = SnapshotStore(world.settings, flow="knowledge")
    deadline = time.monotonic() + 60
    while not (
        (manifest := store.manifest())
        and manifest.newest
        and iceberg_catalog.row_count(world.settings, "silver.metrics")
    ):
        assert process.poll() is None, world.printed()
        assert time.monotonic() < deadline, world.printed()
        time.sleep(0.1)


def end_of(process: subprocess.Popen[bytes]) -> float:
    began = time.monotonic()
    process.wait(timeout=BOUND_SECONDS)
    return time.monotonic() - began


@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", OUTAGES)
def test_the_flow_ends_with_an_error_that_names_the_thing_and_resumes(
    world: World, proxy: FaultProxy, name: str
) -> None:
    fault, thing = OUTAGES[name]
    with world.fed(pause=0.1):
        (process,) = world.start(Layout(), **SHORT)
        wait_for_snapshot(world, process)
        proxy.rules = [fault]
        seconds = end_of(process)
    print(f"{name}: {seconds:.0f} s")
    world.kill([process])
    printed = world.printed()
    assert process.returncode == 1, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("pkm: ")]
    assert re.search(thing, line)
    assert printed.rstrip().endswith(line)

    proxy.rules = []
    world.run_until_caught_up(Layout())
    assert world.check() == [], world.printed()
    balance = world.balance()
    assert balance.records == balance.rows + balance.duplicates + balance.dead_letters == world.feeder.sent


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_the_command_says_it_in_one_line(world: World, proxy: FaultProxy) -> None:
    variables = {**os.environ, **world.variables, **SHORT, "PKM_ENRICH": "none", "PKM_LOG_LEVEL": "error"}
    recovery = {"PKM_RECOVERY_DIR": str(world.folder / "command"), "PKM_SNAPSHOT_SECONDS": "1"}
    with world.fed(pause=0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", "from pkm.cli import main; main()", "run", "--json"],
            env={**variables, **recovery, "PKM_WINDOW_SECONDS": "3", "PKM_LATENESS_SECONDS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for_snapshot(world, process)
            proxy.rules = [Fault("drop", service="glue")]
            _, said = process.communicate(timeout=BOUND_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 1
    (line,) = said.splitlines()
    assert re.search(r"table (bronze|silver)\.\w+: .* failed after", line)
