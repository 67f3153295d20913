"""The copier of recovery snapshots with fault points around its writes; started by `chaos.doomed` in its place."""

from __future__ import annotations

import os
import sys

from chaos import bugs, points
from core.recovery import copier

if __name__ == "__main__":
    bugs.plant(os.environ.get("CHAOS_BUG", ""))
    points.copier_points(points.Doom.from_environment())
    sys.exit(copier.main())
