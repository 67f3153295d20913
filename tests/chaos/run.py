"""The whole chaos: every fault point, then kills at random moments, each followed by a life of another layout.

python -m chaos.run --seed 7 --kills 200        # make chaos SEED=7 KILLS=200
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chaos import planted, points
from chaos.books import Balance
from chaos.world import Layout, NeverReachedError, World, fresh_settings, new_world
from pkm.stack import local_aws

__all__ = ["main", "without_users_variables"]

LIVES_IN_A_ROUND = 20
RECORDS_BEFORE = 40
PAUSE_SECONDS = 0.15
LONGEST_LIFE_SECONDS = 12.0


@dataclass(frozen=True)
class Round:
    """Lives on one stream, and what was found after the last, undisturbed one."""

    name: str
    kills: int
    commits: int
    balance: Balance
    wrong: list[str]
    seconds: float

    def __str__(self) -> str:
        books = self.balance
        return (
            f"{self.name:28} {self.kills:4} kills, {self.commits:4} commits: {books.records:6} records ="
            f" {books.rows:6} rows + {books.duplicates:5} duplicates + {books.dead_letters:5} dead letters;"
            f" {books.lost} lost, {books.doubled} doubled, {len(self.wrong)} differences ({self.seconds:.0f} s)"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns 1 when anything is lost, doubled or different, or a bug is not found."""
    parser = argparse.ArgumentParser(prog="python -m chaos.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of records, layouts and times; drawn by default")
    parser.add_argument("--kills", type=int, default=200, help="kills at random moments")
    parser.add_argument("--points", default="", help="only fault points that begin with this")
    parser.add_argument("--only", choices=("points", "kills", "bugs"), default=None)
    options = parser.parse_args(arguments)
    without_users_variables()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    rounds: list[Round] = []
    unfound: list[str] = []
    reached: set[str] = set()
    chosen = [point for point in points.POINTS if point.startswith(options.points)]
    with local_aws() as account:
        if options.only in (None, "points"):
            for number, batch in enumerate(_batches(chosen)):
                rounds.append(_round(f"points {batch[0]}", account, seed + number, _points(batch, reached)))
                print(rounds[-1], *rounds[-1].wrong, sep="\n  ", flush=True)
        if options.only in (None, "kills"):
            for first in range(0, options.kills, LIVES_IN_A_ROUND):
                kills = min(LIVES_IN_A_ROUND, options.kills - first)
                rounds.append(_round(f"random kills, seed {seed + first}", account, seed + first, _random(kills)))
                print(rounds[-1], *rounds[-1].wrong, sep="\n  ", flush=True)
        if options.only in (None, "bugs"):
            for name, description in planted.BUGS.items():
                with new_world(fresh_settings(account), seed=seed) as world:
                    wrong = planted.differences_with(world, name)
                print(f"planted bug: {description}: {wrong[0][:150] if wrong else 'NOT FOUND'}", flush=True)
                if not wrong:
                    unfound.append(name)
    print(_summary(seed, rounds, reached), flush=True)
    missing = set(chosen) - reached if options.only in (None, "points") else set()
    for point in sorted(missing):
        print(f"never reached: {point}")
    return 1 if unfound or missing or any(found.wrong for found in rounds) else 0


def without_users_variables() -> None:
    """See to it that nothing here can reach an account, or depend on the shell it is started from."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "PKM_", "BYTEWAX_"))]:
        del os.environ[name]


def _round(name: str, account: dict[str, str], seed: int, live: Callable[[World, random.Random], int]) -> Round:
    started = time.monotonic()
    chance = random.Random(seed)
    with new_world(fresh_settings(account), seed=seed) as world:
        world.feeder.send(RECORDS_BEFORE)
        with world.fed(pause=PAUSE_SECONDS):
            kills = live(world, chance)
        world.run_until_caught_up(Layout.drawn(chance))
        return Round(name, kills, world.commits(), world.balance(), world.check(), time.monotonic() - started)


def _points(batch: Sequence[str], reached: set[str]) -> Callable[[World, random.Random], int]:
    def live(world: World, chance: random.Random) -> int:
        for point in batch:
            once = any(word in point for word in (":open:", ":claim:", "recovery:"))
            passage = 1 if once else chance.choice((1, 2, 3))
            try:
                world.die_at(point, layout=Layout.drawn(chance), passage=passage, alone=chance.random() < 0.3)
            except NeverReachedError as error:
                world.surprises.append(str(error))
        reached.update(world.reached)
        return world.lives

    return live


def _random(kills: int) -> Callable[[World, random.Random], int]:
    def live(world: World, chance: random.Random) -> int:
        for _ in range(kills):
            seconds = chance.uniform(0.3, LONGEST_LIFE_SECONDS)
            world.die_after(seconds, layout=Layout.drawn(chance), alone=chance.random() < 0.3)
        return kills

    return live


def _batches(chosen: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(chosen), LIVES_IN_A_ROUND):
        yield chosen[first : first + LIVES_IN_A_ROUND]


def _summary(seed: int, rounds: Sequence[Round], reached: set[str]) -> str:
    kills = sum(found.kills for found in rounds)
    records = sum(found.balance.records for found in rounds)
    lost = sum(found.balance.lost for found in rounds)
    doubled = sum(found.balance.doubled for found in rounds)
    wrong = sum(len(found.wrong) for found in rounds)
    return (
        f"seed {seed}: {kills} kills, {len(reached)} of {len(points.POINTS)} fault points, {records} records:"
        f" {lost} lost, {doubled} doubled, {wrong} differences"
    )


if __name__ == "__main__":
    sys.exit(main())
