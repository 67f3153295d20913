"""A child process of the delivery benchmark: the flow as it is, and when its notes came through.

    python -m bench.timed_flow        # settings from the environment; prints one line of JSON

The clock starts with the first enriched batch, when models are loaded and stores are open, and ends when the last
epoch is committed and all sinks are closed.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from core.settings import load_settings
from core.telemetry import NOTES

LOOK_SECONDS = 0.02


def notes() -> int:
    """Return how many notes are enriched so far."""
    return int(next(sample.value for sample in NOTES.collect()[0].samples if sample.name.endswith("_total")))


def main() -> int:
    """Run to the end of the stream; print notes and seconds after the first batch."""
    # Here, not at the top: the parsers' child process imports this module, and has no room for torch.
    from flows import knowledge
    from pkm.running import run_flow

    first: list[tuple[int, float, float]] = []

    def watch() -> None:
        while not notes():
            time.sleep(LOOK_SECONDS)
        first.append((notes(), time.perf_counter(), time.process_time()))

    threading.Thread(target=watch, daemon=True).start()
    settings = load_settings()
    run_flow(settings, flow=knowledge.FLOW, workers=1)
    ended, cpu = time.perf_counter(), time.process_time()
    at_first, began, cpu_before = first[0]
    print(json.dumps({"notes": notes() - at_first, "seconds": ended - began, "cpu_seconds": cpu - cpu_before}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
