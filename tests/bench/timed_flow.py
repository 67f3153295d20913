"""A child process of the delivery benchmark: the flow as it is, and when its notes came through.

    python -m bench.timed_flow        # settings from the environment; prints one line of JSON

The clock runs from the batch that makes 80 notes enriched to the last one. By then models are loaded, batches have
grown to what an epoch takes, and epochs of ten seconds have ended, so all stores are open. So it holds the ends of
epochs between, and neither the start nor the end of a run, which happen once.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from core.settings import load_settings
from core.telemetry import NOTES

LOOK_SECONDS = 0.02
WARM_NOTES = 80


def enriched() -> int:
    """Return how many notes are enriched so far."""
    return int(next(sample.value for sample in NOTES.collect()[0].samples if sample.name.endswith("_total")))


def main() -> int:
    """Run to the end of the stream; print how many notes came through in what time."""
    # Here, not at the top: the parsers' child process imports this module, and has no room for torch.
    from flows import knowledge
    from pkm.running import run_flow

    seen: list[tuple[int, float, float]] = []

    def watch() -> None:
        while True:
            notes = enriched()
            if notes != (seen[-1][0] if seen else 0):
                seen.append((notes, time.perf_counter(), time.process_time()))
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=watch, daemon=True).start()
    run_flow(load_settings(), flow=knowledge.FLOW, workers=1)
    assert seen[-1][0] > WARM_NOTES, f"all of {WARM_NOTES} notes come before the clock starts: give it more documents"
    (first, began, cpu), (last, ended, cpu_then) = next(one for one in seen if one[0] >= WARM_NOTES), seen[-1]
    print(json.dumps({"notes": last - first, "seconds": ended - began, "cpu_seconds": cpu_then - cpu}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
