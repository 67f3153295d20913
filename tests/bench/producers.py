"""How fast producers are: 10,000 small files to S3 and the stream, against a bare loop of boto3 calls, in turns.

    python -m bench.producers [--files 10000] [--bare-files 1000] [--rounds 3] [--latency-ms 10]

The loop reads a file, puts it with `put_object` and announces it with `put_record`, one call after the other. Both
sides read the same files from memory and talk to the same stand-in for S3 and Kinesis, a process of its own on the
same cores that answers each call after a fixed time; then once more without any latency, where only the cost of the
clients and the stand-in is left. The loop gets fewer files, since its rate does not depend on their number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3

from core import aws
from core.settings import Settings
from core.telemetry import configure_logging
from pkm.stack import environment
from producers.announce import announce
from producers.files import files

CONTENT_BYTES = 1_000


@contextlib.contextmanager
def stand_in(latency_ms: float) -> Iterator[None]:
    """Run the stand-in, and let this process's AWS clients talk to it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.aws_stand_in", str(latency_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    os.environ |= environment(int(child.stdout.readline()))
    try:
        yield
    finally:
        child.terminate()
        child.communicate()


def write_files(folder: Path, count: int, stamp: str) -> Path:
    """Make a folder of small Markdown files that no round before had."""
    root = folder / stamp
    for number in range(count):
        path = root / f"{number % 100:02}" / f"note-{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Note {number} of {stamp}\n\n".ljust(CONTENT_BYTES, "x"))
    return root


def bare_loop(root: Path, settings: Settings) -> int:
    """Put and announce one file after the other, as the APIs' examples do."""
    s3 = boto3.client("s3", region_name=aws.region(settings), endpoint_url=aws.endpoint("s3"))
    kinesis = boto3.client("kinesis", region_name=aws.region(settings), endpoint_url=aws.endpoint("kinesis"))
    count = 0
    for path in root.rglob("*.md"):
        key, content = f"raw/{path.relative_to(root)}", path.read_bytes()
        s3.put_object(Bucket=settings.bucket, Key=key, Body=content, ContentType="text/markdown")
        record = {"s3_key": key, "content_size": len(content), "metadata": {"path": key}, "source_type": "files"}
        kinesis.put_record(StreamName=settings.stream, Data=json.dumps(record).encode(), PartitionKey=key)
        count += 1
    return count


def ours(root: Path, settings: Settings) -> int:
    """The same with the producers' core, as `pkm ingest files` does."""
    summary = announce(files([root], settings=settings), settings=settings)
    assert summary.announced == summary.uploaded
    return summary.announced


def measured(work: Callable[[Path, Settings], int], root: Path, settings: Settings) -> float:
    """Return objects a second."""
    began = time.perf_counter()
    return work(root, settings) / (time.perf_counter() - began)


def shown(name: str, rates: list[float]) -> float:
    """Print the rounds of one contender; returns its median rate."""
    median = statistics.median(rates)
    print(f"  {name:18} {median:8,.0f} objects/s ({min(rates):,.0f} to {max(rates):,.0f})")
    return median


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.producers", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--bare-files", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=10.0)
    options = parser.parse_args()
    settings = Settings(log_level="warning")
    configure_logging(settings)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for latency_ms in (options.latency_ms, 0.0):
            with stand_in(latency_ms):
                bare, mine = [], []
                for number in range(options.rounds):
                    stamp = f"{latency_ms:g}-{number}"
                    few = write_files(Path(folder), options.bare_files, f"bare-{stamp}")
                    many = write_files(Path(folder), options.files, f"ours-{stamp}")
                    bare.append(measured(bare_loop, few, settings))
                    mine.append(measured(ours, many, settings))
            print(
                f"{CONTENT_BYTES:,} bytes a file, {latency_ms:g} ms a call of S3 and Kinesis, "
                f"{options.rounds} rounds in turns of {options.bare_files:,} and {options.files:,} files:"
            )
            print(f"  ratio              {1 / shown('bare boto3 loop', bare) * shown('producers', mine):8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
