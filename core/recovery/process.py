"""Starts the copier beside a flow, keeps it running, and ends it; and what both agree on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import structlog

from core.memory import private_folder
from core.settings import Settings

__all__ = ["CLOSE_SECONDS", "FENCED", "FULL", "LAST_COPY_SECONDS", "PUBLISHED", "UNPUBLISHED", "CopierProcess"]

PUBLISHED, UNPUBLISHED, FENCED, FULL = 0, 1, 3, 4
"""Exit codes: the last copy is on S3; it could not be put there; a newer execution has taken over; memory is full."""

LAST_COPY_SECONDS = 45.0
# The copier gives up by itself first, with the reason.
CLOSE_SECONDS = LAST_COPY_SECONDS + 15.0
RESTART_SECONDS = 1.0
COPIER = "core.recovery.copier"

_log = structlog.get_logger(module=__name__)


class CopierProcess:
    """The running copier; started again when it dies, because a flow without snapshots would go unnoticed."""

    def __init__(self, settings: Settings, *, flow: str, directory: Path, execution: int) -> None:
        self._command = [
            # -P: the working directory may hold another package called core. -B: no bytecode on a disk.
            *(sys.executable, "-P", "-B", "-m", COPIER),
            *("--directory", str(directory), "--own", str(private_folder()), "--flow", flow),
            *("--execution", str(execution), "--parent", str(os.getpid())),
        ]
        self._environment = _environment(settings)
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._process = self._start()
        threading.Thread(target=self._watch, name="recovery-copier", daemon=True).start()

    def stop(self, *, seconds: float) -> int:
        """Ask for the last copy and wait up to `seconds` for it; returns the exit code."""
        with self._starting:
            self._stopping.set()
            if self._process.poll() not in {None, FENCED}:
                self._process = self._start()  # it died a moment ago, and the last copy is still to be made
        with contextlib.suppress(OSError), self._process.stdin or contextlib.nullcontext():
            # Written, not only closed: a child that the flow forked may hold the pipe open.
            if self._process.stdin:
                self._process.stdin.write(b"end\n")
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        # A process group of its own: Ctrl-C is for the flow, and may come before the copier can ignore it.
        return subprocess.Popen(self._command, env=self._environment, stdin=subprocess.PIPE, process_group=0)

    def _watch(self) -> None:
        while True:
            process = self._process
            code = process.wait()
            if self._stopping.is_set() or code == FENCED:
                return
            _log.error("recovery copier ended; starting it again", exit_code=code)
            if process.stdin:
                process.stdin.close()
            self._stopping.wait(RESTART_SECONDS)
            with self._starting:
                if self._stopping.is_set():
                    return
                self._process = self._start()


def _environment(settings: Settings) -> dict[str, str]:
    """The copier's environment: ours, with the settings it needs as they are here, wherever they came from."""
    environment = {
        **os.environ,
        "PKM_BUCKET": settings.bucket,
        "PKM_STREAM": settings.stream,
        "PKM_REGION": settings.region,
        "PKM_SNAPSHOT_SECONDS": str(settings.snapshot_seconds),
        "PKM_SNAPSHOT_RETENTION": str(settings.snapshot_retention),
        "PKM_SNAPSHOT_RETENTION_HOURS": str(settings.snapshot_retention_hours),
        "PKM_LOG_FORMAT": settings.log_format,
        "PKM_LOG_LEVEL": settings.log_level,
    }
    if settings.memory_dir_bytes:
        environment["PKM_MEMORY_DIR_BYTES"] = str(settings.memory_dir_bytes)
    if settings.snapshot_key:
        environment["PKM_SNAPSHOT_KEY"] = settings.snapshot_key.get_secret_value()
    root = Path(__file__).parents[2]
    if root != Path(sysconfig.get_path("purelib")):
        # bytewax.run finds our packages by the flow's path; the copier has none.
        paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
