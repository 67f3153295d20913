"""A child process of the delivery benchmark: the flow as it is, and how long its notes took.

    python -m bench.timed_flow        # settings from the environment; prints one line of JSON

The clock runs from the batch that makes 80 notes enriched until all notes are in all stores. By then models are
loaded, batches have grown to what an epoch takes, and epochs of ten seconds have ended, so all stores are open. The
end is in it, or an epoch that is longer than the run would write nothing while the clock runs.
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

    warm: list[tuple[int, float, float]] = []

    def watch() -> None:
        while enriched() < WARM_NOTES:
            time.sleep(LOOK_SECONDS)
        warm.append((enriched(), time.perf_counter(), time.process_time()))

    threading.Thread(target=watch, daemon=True).start()
    run_flow(load_settings(), flow=knowledge.FLOW, workers=1)
    assert warm, f"all of {WARM_NOTES} notes come before the clock starts: give it more documents"
    before, began, cpu = warm[0]
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps({"notes": enriched() - before, **taken}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
