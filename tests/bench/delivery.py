"""What exactly once costs: snapshots every 10 s against every 300 s, far stores against near ones, and a restart.

    python -m bench.delivery [--documents 200] [--rounds 3] [--kills 5] [--share]
                              [--only snapshots|distance|restart]

The flow has one core to itself; the local AWS and the proxy before it have the other, since in production they are
not on the flow's machine. With `--share` what the flow does beside the stream may use that core too, as in a
container of two cores. Contenders run in turns over the same documents, each in lakehouses of their own. A rate
counts notes that are in all stores; the start, with the first 80 notes, is left out (`bench.timed_flow`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chaos.run import without_users_variables
from chaos.world import fresh_settings
from core.settings import Settings, load_settings
from faults.proxy import fault_proxy
from pkm.initialise import initialise
from pkm.stack import local_aws
from producers.announce import SourceItem, announce
from producers.installed import installed_readmes
from sinks import iceberg_catalog, iceberg_tables

REPOSITORY = Path(__file__).parents[2]
PKM = Path(sys.executable).with_name("pkm")
DELAYS_SECONDS = (0.0, 0.1)
# Notes as people write them; whole READMEs would hide the stores behind the models even more.
NOTE_CHARACTERS = 1_500
RUN_SECONDS = 900
COMMIT_SECONDS = 120


@dataclass(frozen=True)
class Measured:
    notes: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.notes / self.seconds


def cores() -> tuple[set[int], set[int]]:
    """Share the cores between the flow and the AWS that it talks to; with a single core both have it."""
    every = sorted(os.sched_getaffinity(0))
    return {every[0]}, {every[-1]}


def documents(count: int) -> Iterator[SourceItem]:
    """Give so many notes of real prose: parts of the READMEs of installed packages, well mixed.

    A run's first notes are not measured, and how many depends on the epoch: unmixed, the rest would be other notes.
    """
    parts = [
        (readme.identity, at, text[at : at + NOTE_CHARACTERS])
        for readme in installed_readmes()
        for text in [readme.content.decode()]
        for at in range(0, max(1, len(text) - NOTE_CHARACTERS + 1), NOTE_CHARACTERS)
    ]
    random.Random(7).shuffle(parts)
    for name, at, content in itertools.islice(parts, count):
        yield SourceItem("bench", f"{name}/{at}", content.encode(), "text/markdown", {"path": f"{name}/{at}"})


@contextlib.contextmanager
def lakehouse(account: dict[str, str], *, enrich: str) -> Iterator[Settings]:
    """Empty the local AWS and make stream, bucket and stores; this process's environment leads there."""
    folder = Path(tempfile.mkdtemp(prefix="pkm-bench-", dir="/dev/shm"))
    fresh_settings(account)
    os.environ |= {"PKM_ENRICH": enrich, "PKM_RECOVERY_DIR": str(folder / "recovery"), "PKM_LOG_LEVEL": "warning"}
    load_settings.cache_clear()
    settings = load_settings()
    initialise(settings)
    try:
        yield settings
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(*command: str | Path, flow_cores: set[int], **variables: str) -> subprocess.Popen[bytes]:
    """Start a flow on its cores; this process may have others."""
    own = {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1", "PKM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **own, **variables}, stdout=subprocess.PIPE
    )
    os.sched_setaffinity(process.pid, flow_cores)
    return process


def timed(
    items: list[SourceItem], account: dict[str, str], *, enrich: str, flow_cores: set[int], **variables: str
) -> Measured:
    """Run the flow over documents in a new lakehouse."""
    with lakehouse(account, enrich=enrich) as settings:
        announce(items, settings=settings)
        command = (sys.executable, "-m", "bench.timed_flow")
        process = start(*command, flow_cores=flow_cores, PKM_UNTIL_CAUGHT_UP="1", **variables)
        printed, _ = process.communicate(timeout=RUN_SECONDS)
        assert process.returncode == 0
        stored = iceberg_catalog.scan(settings, iceberg_tables.SILVER_NOTES.identifier, columns=("note_id",)).num_rows
        assert stored == len(items), f"{stored} of {len(items)} notes"
        return Measured(**json.loads(printed.splitlines()[-1]))


def compare(title: str, contenders: Mapping[str, Callable[[], Measured]], *, rounds: int) -> None:
    """Run contenders in turns, the order turned round each time; print rates and the ratio of each round's pair."""
    results: dict[str, list[Measured]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in sorted(contenders, reverse=number % 2 == 1):
            results[name].append(contenders[name]())
    print(f"\n{title}")
    for name, runs in results.items():
        rates = sorted(run.rate for run in runs)
        cpu = statistics.median(run.cpu_seconds / run.notes for run in runs)
        print(
            f"  {name:28} {statistics.median(rates):6.2f} notes/s ({rates[0]:.2f} to {rates[-1]:.2f}),"
            f" {cpu:.3f} s of CPU a note"
        )
    one, other = results.values()
    ratios = sorted(b.rate / a.rate for a, b in zip(one, other, strict=True))
    print(f"  ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def restarts(
    items: list[SourceItem], account: dict[str, str], *, enrich: str, flow_cores: set[int], kills: int
) -> None:
    """Kill the flow in the middle, start it on an empty machine, and wait for its first commit of new rows."""
    chance = random.Random(7)
    taken: list[float] = []
    with lakehouse(account, enrich=enrich) as settings:
        announce(items, settings=settings)

        def committed() -> int:
            return iceberg_catalog.marker(settings, iceberg_tables.BRONZE_NOTES.identifier).commit_number

        process = start(PKM, "run", flow_cores=flow_cores)
        for _ in range(kills):
            wait_for_more(committed, process)
            time.sleep(chance.uniform(0, settings.snapshot_seconds))
            process.send_signal(signal.SIGKILL)
            process.wait()
            shutil.rmtree(settings.recovery_dir, ignore_errors=True)
            began = time.monotonic()
            process = start(PKM, "run", flow_cores=flow_cores)
            wait_for_more(committed, process)
            taken.append(time.monotonic() - began)
        process.kill()
        process.wait()
    taken.sort()
    print(f"\nfrom SIGKILL and a lost machine to the first new commit, epochs of {settings.snapshot_seconds} s")
    print(f"  {statistics.median(taken):.1f} s ({taken[0]:.1f} to {taken[-1]:.1f}, {kills} kills)", flush=True)


def wait_for_more(count: Callable[[], int], process: subprocess.Popen[bytes]) -> None:
    """Wait until there is a commit more than now."""
    before, deadline = count(), time.monotonic() + COMMIT_SECONDS
    while count() == before:
        assert process.poll() is None, "the flow ended"
        assert time.monotonic() < deadline, f"no commit in {COMMIT_SECONDS} s: give it more documents"
        time.sleep(0.1)


def main() -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.delivery", description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--enrich", choices=("embedded", "none"), default="embedded")
    parser.add_argument("--share", action="store_true", help="let the flow use the other core too")
    parser.add_argument("--only", choices=("snapshots", "distance", "restart"), default=None)
    options = parser.parse_args()
    without_users_variables()
    flow_cores, rest = cores()
    if options.share:
        flow_cores |= rest
    # What this process starts, the local AWS first, stays there; only flows are moved.
    os.sched_setaffinity(0, rest)
    items = list(documents(options.documents))
    print(
        f"{len(items)} notes of {NOTE_CHARACTERS:,} characters, models: {options.enrich}, {options.rounds} rounds;"
        f" flow on cores {sorted(flow_cores)}, the rest on {sorted(rest)}"
    )
    with local_aws() as account, fault_proxy(account["AWS_ENDPOINT_URL"]) as proxy:
        run = partial(timed, items, account, enrich=options.enrich, flow_cores=flow_cores)
        if options.only in (None, "snapshots"):
            often = {f"every {seconds} s": partial(run, PKM_SNAPSHOT_SECONDS=str(seconds)) for seconds in (300, 10)}
            compare("snapshots", often, rounds=options.rounds)
        if options.only in (None, "distance"):
            # Both contenders go through the proxy; lakehouses are made and looked at without it.
            through = {"AWS_ENDPOINT_URL_S3": proxy.url, "AWS_ENDPOINT_URL_GLUE": proxy.url}

            def delayed(seconds: float) -> Measured:
                proxy.delay_seconds = seconds
                return run(**through)

            far = {f"{seconds * 1000:.0f} ms": partial(delayed, seconds) for seconds in DELAYS_SECONDS}
            compare("delay added to each request to S3 and the catalog", far, rounds=options.rounds)
        if options.only in (None, "restart"):
            restarts(items, account, enrich=options.enrich, flow_cores=flow_cores, kills=options.kills)
    return 0


if __name__ == "__main__":
    sys.exit(main())
