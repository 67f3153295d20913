"""A lakehouse on a local AWS, and the lives of the flow in it: each starts with another layout and may be killed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from chaos import books, points
from chaos.enrichment import DIMENSION
from chaos.stream import Feeder
from core import aws
from core.settings import Settings, load_settings
from loopback import cluster_addresses
from pkm.initialise import initialise
from sinks import iceberg_catalog, lance

__all__ = ["Layout", "NeverReachedError", "World", "new_world"]

REPOSITORY = Path(__file__).parents[2]
WINDOW = timedelta(seconds=3)
LIFE_SECONDS = 90.0
BEREAVED_SECONDS = 10.0
RUN_SECONDS = 280.0


class NeverReachedError(AssertionError):
    """A life ended, or went on and on, without its fault point."""


@dataclass(frozen=True)
class Layout:
    """How many processes of how many workers a life has, and how long its epochs are."""

    processes: int = 1
    workers: int = 1
    epoch_seconds: int = 1

    @classmethod
    def drawn(cls, chance: random.Random) -> Layout:
        """Draw one: 1 to 3 workers in 1 or 2 processes."""
        return cls(processes=chance.choice((1, 1, 2)), workers=chance.choice((1, 2, 3)))


@dataclass
class World:
    """One stream, its stores, and everything that was started on them."""

    settings: Settings
    feeder: Feeder
    folder: Path
    lives: int = 0
    reached: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    """What went wrong before any table was looked at."""
    variables: dict[str, str] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, layout: Layout, **variables: str) -> list[subprocess.Popen[bytes]]:
        """Start a life on an empty machine."""
        self.lives += 1
        recovery = self.folder / "recovery"
        while recovery.exists():  # a copier that outlived its flow may make a file there meanwhile
            shutil.rmtree(recovery, ignore_errors=True)
        addresses = cluster_addresses(layout.processes)
        processes = []
        for number in range(layout.processes):
            own = recovery if number == 0 else recovery / f"other-{number}"
            own.mkdir(parents=True)
            cluster = ("-i", str(number), "-a", addresses) if layout.processes > 1 else ()
            with (self.folder / f"life-{self.lives}-{number}.log").open("wb") as log:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "chaos.doomed", "flows.knowledge:flow"),
                        *("-r", str(own), "-s", str(layout.epoch_seconds), "-b", "0"),
                        *("-w", str(layout.workers), *cluster),
                    ],
                    cwd=REPOSITORY,
                    env={**os.environ, **self._environment(), **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
        self._running += processes
        return processes

    def die_at(
        self,
        point: str,
        *,
        layout: Layout,
        passage: int = 1,
        alone: bool = False,
        attempts: int = 5,
        **variables: str,
    ) -> None:
        """Live until a fault point ends it; a death inside a write that came too late is tried again.

        Raises NeverReachedError when the point is not reached.
        """
        for attempt in range(attempts):
            death = self._die_at(
                point,
                layout,
                CHAOS_PASSAGE=str(passage),
                CHAOS_ALONE="1" if alone else "0",
                CHAOS_HURRY=str(attempt),
                **variables,
            )
            if death == point:
                self.reached.append(point)
                return
        raise NeverReachedError(f"{point} was over before the kill came, {attempts} times")

    def _die_at(self, point: str, layout: Layout, **variables: str) -> str:
        alone = variables["CHAOS_ALONE"] == "1"
        processes = self.start(layout, CHAOS_POINT=point, **variables)
        deadline = time.monotonic() + LIFE_SECONDS
        bereaved = False
        while all(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if not bereaved and self._deaths():
                # A copier may die alone: the flow starts another one and goes on.
                bereaved, deadline = True, time.monotonic() + BEREAVED_SECONDS
            time.sleep(0.02)
        self.kill(processes, alone=alone)
        deaths = self._deaths()
        if not deaths or deaths[0].removesuffix(points.TOO_LATE) != point:
            raise NeverReachedError(f"{point} was not reached in life {self.lives}: {deaths} {self.printed()}")
        return deaths[0]

    def die_after(self, seconds: float, *, layout: Layout, alone: bool = False) -> None:
        """Live for some time, then die wherever that is."""
        processes = self.start(layout)
        time.sleep(seconds)
        if not all(process.poll() is None for process in processes):
            self.surprises.append(f"life {self.lives} ended before it was killed: {self.printed()}")
        self.kill(processes, alone=alone)

    def kill(self, processes: list[subprocess.Popen[bytes]], *, alone: bool = False) -> None:
        """End processes by SIGKILL, with all that they have started unless they die `alone`."""
        for process in processes:
            if process.poll() is None:
                if not alone:
                    process.send_signal(signal.SIGSTOP)
                    points.kill_children(process.pid)
                process.kill()
        for process in processes:
            process.wait(timeout=30)
            self._running.remove(process)

    def run_until_caught_up(self, layout: Layout, **variables: str) -> None:
        """Live undisturbed to the end of the stream."""
        processes = self.start(layout, PKM_UNTIL_CAUGHT_UP="1", **variables)
        deadline = time.monotonic() + RUN_SECONDS
        for process in processes:
            process.wait(timeout=max(1.0, deadline - time.monotonic()))
        assert all(process.returncode == 0 for process in processes), self.printed()
        for process in processes:
            self._running.remove(process)

    def check(self) -> list[str]:
        """Say what is wrong in any table, or was on the way."""
        return self.surprises + books.differences(self.settings, self.expected())

    def balance(self) -> books.Balance:
        """Balance the books."""
        return books.balance(self.settings, self.expected())

    def commits(self) -> int:
        """Count what all lives together have committed to the Iceberg tables."""
        return sum(iceberg_catalog.marker(self.settings, table).commit_number for table in points.TABLES)

    def expected(self) -> books.Expected:
        """Work out what every table must hold now."""
        return books.expected(
            books.read_stream(self.settings),
            self.feeder.contents,
            window=WINDOW,
            late_keys=self.feeder.late_keys,
            stored=set(books.stored_places(self.settings)),
        )

    @contextlib.contextmanager
    def fed(self, *, pause: float) -> Iterator[None]:
        """Have records come while the block runs."""
        stop = threading.Event()
        sender = threading.Thread(target=self.feeder.run_until, args=(stop,), kwargs={"pause": pause}, daemon=True)
        sender.start()
        try:
            yield
        finally:
            stop.set()
            sender.join(timeout=60)
            self.feeder.finish()

    def printed(self) -> str:
        """What the processes of this life have printed last."""
        logs = sorted(self.folder.glob(f"life-{self.lives}-*.log"))
        return "\n".join(f"[{log.name}] {log.read_text(errors='replace')[-3000:]}" for log in logs)

    def close(self) -> None:
        """End what still runs and remove what is left on this machine."""
        self.kill(list(self._running))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _deaths(self) -> list[str]:
        log = self._death_log()
        return log.read_text().splitlines() if log.exists() else []

    def _death_log(self) -> Path:
        # One for each life: a copier that outlived its flow may die at its point in the next life.
        return self.folder / f"deaths-{self.lives}"

    def _environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"))),
            "RUST_BACKTRACE": "0",
            "OMP_NUM_THREADS": "1",
            "CHAOS_LOG": str(self._death_log()),
            "CHAOS_CHUNKS": "1",
            "PKM_ENRICH": "none",
            "PKM_LOG_LEVEL": "warning",
            "PKM_WINDOW_SECONDS": str(int(WINDOW.total_seconds())),
            "PKM_LATENESS_SECONDS": "1",
            "PKM_SNAPSHOT_SECONDS": "1",
            "PKM_SNAPSHOT_RETENTION": "3",
            **self.variables,
        }


@contextlib.contextmanager
def new_world(settings: Settings, *, seed: int) -> Iterator[World]:
    """Make stream, tables and stores; in the end everything that was started is gone."""
    folder = Path(tempfile.mkdtemp(prefix="pkm-chaos-", dir="/dev/shm"))
    initialise(settings)
    lance.create_dataset(settings, dimension=DIMENSION)
    world = World(settings, Feeder(settings, seed), folder)
    try:
        yield world
    finally:
        world.close()


def fresh_settings(account: dict[str, str]) -> Settings:
    """Empty a local AWS and name a bucket and a stream in it, through this process's environment."""
    reset = urllib.request.Request(f"{account['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=30).close()
    name = uuid.uuid4().hex[:12]
    os.environ.update(
        {**account, "PKM_BUCKET": f"bucket-{name}", "PKM_STREAM": f"stream-{name}", "PKM_ENRICH": "none"}
    )
    load_settings.cache_clear()
    settings = load_settings()
    aws.s3_client(settings).create_bucket(Bucket=settings.bucket)
    return settings
