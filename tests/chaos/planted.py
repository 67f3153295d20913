"""Lives with a planted bug, each arranged so that the bug shows: the suite's own checks must find it."""

from __future__ import annotations

from chaos.bugs import BUGS
from chaos.world import Layout, World

__all__ = ["BUGS", "differences_with"]

ONE = Layout()
# On a busy machine too, three records are one epoch: the first batches are of one record, and open all stores.
ONE_EPOCH = Layout(epoch_seconds=8)


def differences_with(world: World, bug: str) -> list[str]:
    """Plant `bug` in every life that follows and say what the checks find: nothing when they are blind."""
    world.variables["CHAOS_BUG"] = bug
    match bug:
        case "no_marker":
            world.feeder.send(30)
            world.die_at("bronze.notes:commit:after", layout=ONE, CHAOS_SLOW="snapshot:manifest")
        case "no_durability":
            world.feeder.send(30)
            world.die_at("snapshot:manifest:after", layout=ONE, passage=2)
        case "no_references":
            world.feeder.send(30)
            world.die_at("snapshot:manifest:after", layout=ONE, passage=2, CHAOS_SLOW="bronze.notes:commit")
        case "no_waiting":
            world.feeder.send(30)
            world.die_at("snapshot:manifest:after", layout=ONE, passage=2, CHAOS_SLOW="metadata:write")
        case "no_look_up":
            die_before_the_dead_letter(world)
        case "no_history":
            die_before_the_document(world)
    world.feeder.finish()
    world.run_until_caught_up(ONE)
    return world.check()


def die_before_the_dead_letter(world: World) -> None:
    """Die when the documents of an epoch are stored, and its failures are not; then the object comes."""
    world.feeder.send_kinds("new", "late object", "new")
    world.die_at("bronze.notes:commit:after", layout=ONE_EPOCH, CHAOS_SLOW="bronze.failures:file")
    world.feeder.finish()


def die_before_the_document(world: World) -> None:
    """Die when the failures of an epoch are stored, and its documents are not; then the object comes."""
    world.feeder.send_kinds("new", "late object", "new")
    world.die_at("bronze.failures:commit:after", layout=ONE_EPOCH, CHAOS_SLOW="bronze.notes:file")
    world.feeder.finish()
