"""Runs the flow like `python -m bytewax.run`, with fault points around its writes; the child of the chaos suite.

    CHAOS_POINT=silver.notes:commit:inside CHAOS_PASSAGE=2 python -m chaos.doomed flows.knowledge:flow -r DIR

CHAOS_BUG plants a bug, to see that the suite finds it. Notes get chunks and vectors without a model, in no time.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from chaos import bugs, points


def main() -> None:
    """Wrap, plant, and run bytewax with the arguments of this process."""
    _chunk_without_a_model()
    bugs.plant(os.environ.get("CHAOS_BUG", ""))
    points.flow_points(points.Doom.from_environment())
    _doom_the_copier_too()
    sys.argv[0] = "bytewax.run"
    runpy.run_module("bytewax.run", run_name="__main__", alter_sys=True)


def _doom_the_copier_too() -> None:
    from core.recovery import process

    process.COPIER = "chaos.doomed_copier"


def _chunk_without_a_model() -> None:
    import bytewax.operators as op

    from chaos.enrichment import with_chunks
    from operators import chunk

    def chunks(step_id: str, documents: Any, *, processing_version: str, **_: Any) -> Any:
        return op.map(step_id, documents, lambda document: with_chunks(document, processing_version))

    if os.environ.get("CHAOS_CHUNKS") == "1":
        chunk.chunks = chunks


if __name__ == "__main__":
    main()
