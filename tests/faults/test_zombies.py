"""Two owners at once: an execution that was stopped and goes on after another has taken over writes nothing more."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException

from chaos.world import Layout, World
from faults.proxy import Fault, FaultProxy
from sinks import iceberg_catalog

MOMENTS: dict[str, Fault | None] = {
    "between two epochs": None,
    "before its stores are opened": Fault("hold", operation="GET", path="metadata/parts.json", times=1),
    "in the claim of a table": Fault("hold", service="glue", operation="GetTable", times=1, after=2),
    "in a fetch": Fault("hold", operation="GET", path="bronze/raw/", times=1, after=10),
    "in the commit of bronze.notes": Fault("hold", service="glue", operation="UpdateTable", times=1, after=3),
    "in the commit of silver.notes": Fault("hold", path="silver.db/notes/metadata/.*avro", times=1, after=4),
    "in the commit of the vectors": Fault("hold", operation="PUT", path="notes.lance/_versions", times=1, after=4),
    "in the commit of the metadata": Fault("hold", operation="PUT", path="metadata/part-.*/wal", times=1, after=9),
}
STREAMED = ("bronze.notes", "bronze.failures", "silver.notes", "silver.metrics")
# What makes data part of a table, the vectors, the metadata or the recovery state.
COMMIT = re.compile(
    r"UpdateTable|notes\.lance/_versions/|metadata/part-\d+/(wal|manifest)/|snapshots/.*manifest\.json"
)
# A second writer has no fixed number of tries: on a busy machine the flow wins most races.
LEAST_APPENDS, MOST_APPENDS = 2, 200
IN_EVERY_RUN = ("in the commit of bronze.notes",)


def family(process: subprocess.Popen[bytes]) -> list[int]:
    """The process, its copier and its parsers: a machine that stands still does so with all that runs on it."""
    pids = [process.pid]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids += [int(child) for child in (task / "children").read_text().split()]
    return pids


def is_copier(pid: int) -> bool:
    return b"copier" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_for(condition: Callable[[], bool], *, what: str, world: World, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {world.printed()}"
        time.sleep(0.05)


def commits(world: World) -> Counter[str]:
    """How many commits each table has."""
    catalog = iceberg_catalog.load(world.settings)
    tables = [iceberg_catalog.load_table(catalog, world.settings, name) for name in STREAMED]
    return Counter({".".join(table.name()): len(table.metadata.snapshots) for table in tables})


def bear_a_zombie(world: World, proxy: FaultProxy, tmp_path: Path, fault: Fault | None) -> None:
    proxy.rules = [fault] if fault else []
    with world.fed(pause=0.05):
        (zombie,) = world.start(Layout(), AWS_ENDPOINT_URL=proxy.url)
        if fault:
            wait_for(proxy.held.is_set, what="the moment", world=world)
        else:
            wait_for(lambda: commits(world).total() > 5, what="some commits", world=world)
        frozen = family(zombie)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        proxy.rules = []
        log = world.folder / f"life-{world.lives}-0.log"

        # Another machine: it has another folder, and reaches AWS by another way.
        other = World(world.settings, world.feeder, tmp_path, variables=dict(world.variables))
        del other.variables["AWS_ENDPOINT_URL"]
        before = commits(world)
        (newer,) = other.start(Layout(workers=2))
        try:
            # A table is claimed when the first row for it comes.
            wait_for(
                lambda: (
                    all(number > 1 for number in (commits(world) - before).values())
                    and (commits(world) - before).keys() == set(STREAMED)
                ),
                what="commits of the newer one",
                world=other,
            )
            written = len(proxy.writes)
            # Its copier, which would interrupt it, wakes last: the stores themselves have to stop it.
            for pid in sorted(frozen, key=is_copier):
                if is_copier(pid):
                    wait_for(lambda: "FencedError" in log.read_text(), what="the fence", world=world)
                os.kill(pid, signal.SIGCONT)
                proxy.release.set()
            zombie.wait(timeout=60)
            # Only the zombie's requests come this way. It may leave files that nothing names.
            late = [f"{write.operation} {write.path}" for write in proxy.writes[written:]]
            assert [write for write in late if COMMIT.search(write)] == []
            assert newer.poll() is None, other.printed()
        finally:
            other.kill([newer])
    world.kill([zombie])
    printed = log.read_text()
    assert zombie.returncode == 1, printed
    lines = [line for line in printed.splitlines() if line.startswith("pkm: ")]
    assert lines, printed
    assert any("newer" in line or "superseded" in line for line in lines), printed
    world.run_until_caught_up(Layout())
    assert world.check() == [], printed
    balance = world.balance()
    assert balance.records == balance.rows + balance.duplicates + balance.dead_letters == world.feeder.sent


@pytest.mark.thorough
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", IN_EVERY_RUN)
def test_a_zombie_writes_nothing(world: World, proxy: FaultProxy, tmp_path: Path, moment: str) -> None:
    bear_a_zombie(world, proxy, tmp_path, MOMENTS[moment])


@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment not in IN_EVERY_RUN])
def test_a_zombie_of_any_other_moment_writes_nothing(
    world: World, proxy: FaultProxy, tmp_path: Path, moment: str
) -> None:
    bear_a_zombie(world, proxy, tmp_path, MOMENTS[moment])


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_rows_of_a_second_writer_survive_beside_those_of_the_flow(world: World, proxy: FaultProxy) -> None:
    """The second writer appends what it read, again and again, while the flow commits."""
    names = ("bronze.notes", "silver.notes")
    appended = dict.fromkeys(names, 0)
    with world.fed(pause=0.02):
        (process,) = world.start(Layout())
        wait_for(lambda: commits(world).total() > 8, what="some commits", world=world)
        first = {name: iceberg_catalog.scan(world.settings, name).slice(0, 1) for name in names}
        for number in range(MOST_APPENDS):
            if min(appended.values()) >= LEAST_APPENDS:
                break
            name = names[number % 2]
            row = {**first[name].to_pylist()[0], "note_id": f"second-{number}", "event_id": f"second-{number}"}
            table = iceberg_catalog.load_table(iceberg_catalog.load(world.settings), world.settings, name)
            # What lost the race is not in the table.
            with contextlib.suppress(CommitFailedException):
                table.append(pa.Table.from_pylist([row], schema=table.schema().as_arrow()))
                appended[name] += 1
        world.kill([process])
    world.run_until_caught_up(Layout(workers=2))
    assert min(appended.values()) >= LEAST_APPENDS
    for name in names:
        rows = iceberg_catalog.scan(world.settings, name, columns=("note_id",)).to_pylist()
        assert sum(row["note_id"].startswith("second-") for row in rows) == appended[name]
    for name in names:
        iceberg_catalog.load_table(iceberg_catalog.load(world.settings), world.settings, name).delete(
            "note_id LIKE 'second-%'"
        )
    assert world.check() == [], world.printed()
