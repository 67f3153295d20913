"""How long it takes from a SIGKILL to the first new commit, with the machine's state lost.

PYTHONPATH=.:tests python -m chaos.restart
"""

from __future__ import annotations

import statistics
import sys
import time

from chaos.run import without_users_variables
from chaos.world import Layout, World, fresh_settings, new_world
from pkm.stack import local_aws
from sinks import iceberg_catalog

LIVES = 7
LIFE_SECONDS = 8.0
PAUSE_SECONDS = 0.1


def main() -> int:
    """Kill a flow in the middle of its work, start it again, and print the seconds until the table grows."""
    without_users_variables()
    taken = []
    with local_aws() as account, new_world(fresh_settings(account), seed=1) as world:
        world.feeder.send(40)
        with world.fed(pause=PAUSE_SECONDS):
            processes = world.start(Layout())
            for _ in range(LIVES):
                time.sleep(LIFE_SECONDS)
                world.kill(processes)
                killed, before = time.monotonic(), _commits(world)
                processes = world.start(Layout())
                while _commits(world) <= before:
                    time.sleep(0.05)
                taken.append(time.monotonic() - killed)
            world.kill(processes)
    print(
        f"from SIGKILL to the first new commit: median {statistics.median(taken):.1f} s of {LIVES}, "
        f"{min(taken):.1f} to {max(taken):.1f} s"
    )
    return 0


def _commits(world: World) -> int:
    return iceberg_catalog.marker(world.settings, "bronze.notes").commit_number


if __name__ == "__main__":
    sys.exit(main())
