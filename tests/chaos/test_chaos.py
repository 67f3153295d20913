"""Whatever is killed, wherever it is: nothing lost, nothing doubled, the windows of an undisturbed run.

The whole of it (every fault point, random kills, every planted bug) is `make chaos`; here is what a minute holds.
"""

from __future__ import annotations

import random
from typing import Any

import obstore
import pytest

from core import aws
from sinks import iceberg_catalog

POINTS = (
    "bronze.notes:commit:after",
    "bronze.failures:commit:before",
    "silver.notes:pointer:inside",
    "vectors:merge:after",
    "metadata:write:after",
    "snapshot:object:after",
    "recovery:epoch:inside",
)


@pytest.mark.thorough
@pytest.mark.timeout(300)
def test_lives_that_end_at_fault_points_add_up_to_one_undisturbed_life(world: Any) -> None:
    from chaos.world import Layout

    chance = random.Random(7)
    world.feeder.send(40)
    with world.fed(pause=0.15):
        for number, point in enumerate(POINTS):
            world.die_at(point, layout=Layout.drawn(chance), alone=number % 3 == 2)
    assert world.reached == list(POINTS)
    world.run_until_caught_up(Layout(processes=2, workers=1))

    assert world.check() == []
    books = world.balance()
    assert books.records == books.rows + books.duplicates + books.dead_letters
    assert min(books.rows, books.duplicates, books.dead_letters) > 0


def test_a_fault_point_that_is_never_reached_is_told(world: Any) -> None:
    from chaos.world import Layout, NeverReachedError

    with pytest.raises(NeverReachedError, match="vectors:merge:before"):
        world.die_at("vectors:merge:before", layout=Layout(), PKM_UNTIL_CAUGHT_UP="1")


@pytest.mark.thorough
def test_a_dead_letter_that_was_lost_with_its_process_leaves_no_gap_when_the_record_succeeds(world: Any) -> None:
    from chaos import planted
    from chaos.world import Layout

    planted.die_before_the_dead_letter(world)
    world.run_until_caught_up(Layout(workers=2))

    assert world.check() == []
    books = world.balance()
    assert (books.rows, books.dead_letters) == (3, 0)


@pytest.mark.thorough
def test_a_record_whose_dead_letter_is_stored_stays_failed_when_its_object_comes(world: Any) -> None:
    from chaos import planted
    from chaos.world import Layout

    planted.die_before_the_document(world)
    world.run_until_caught_up(Layout(workers=2))

    assert world.check() == []
    books = world.balance()
    assert (books.rows, books.dead_letters) == (2, 1)


@pytest.mark.thorough
def test_a_record_that_is_stored_stays_so_when_its_object_goes(world: Any) -> None:
    from chaos.world import Layout

    world.feeder.send_kinds("new", "new", "new")
    world.die_at("bronze.notes:commit:after", layout=Layout(), CHAOS_SLOW="silver.notes:commit")
    # On a busy machine the first commit need not have all three.
    stored = iceberg_catalog.scan(world.settings, "bronze.notes", columns=("s3_key",))["s3_key"].to_pylist()
    assert stored
    obstore.delete(aws.object_store(world.settings), stored)
    world.run_until_caught_up(Layout(workers=2))

    assert world.check() == []
    books = world.balance()
    assert (books.rows, books.dead_letters) == (3, 0)


@pytest.mark.thorough
def test_a_planted_bug_is_found(world: Any) -> None:
    from chaos import planted

    assert planted.differences_with(world, "no_marker") != []
