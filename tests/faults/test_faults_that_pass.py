"""Faults of S3, the catalog and the stream that pass: the flow rides them out, nothing is lost, nothing doubled."""

from __future__ import annotations

import pytest

from chaos.world import Layout, World
from faults.proxy import Fault, FaultProxy

RECORDS = 80
WRITES = "PUT|POST|DELETE|UpdateTable"

MIXTURE = [
    Fault("slow-down", share=0.03),
    Fault("error-after", service="s3|glue", operation=WRITES, share=0.05),
    Fault("drop", share=0.02),
    Fault("lost-response", service="s3", operation=WRITES, share=0.05),
    Fault("lost-response", service="glue", operation="UpdateTable", share=0.3),
    Fault("hang", share=0.01, times=1),
]
KINDS = {
    "503 SlowDown on a fifth of all requests": [Fault("slow-down", share=0.2)],
    "500 after a write took effect": [Fault("error-after", service="s3|glue", operation=WRITES, share=0.2)],
    "500 after anything took effect": [Fault("error-after", share=0.1)],
    "requests that hang": [Fault("hang", share=0.03, times=20)],
    "connections that are reset": [Fault("drop", share=0.15)],
    "answers that are lost": [Fault("lost-response", share=0.1)],
    "answers to commits that are lost": [Fault("lost-response", service="glue", operation="UpdateTable", share=0.6)],
}


def run_through(world: World, proxy: FaultProxy, rules: list[Fault]) -> None:
    proxy.rules = rules
    world.feeder.send(RECORDS // 2)
    world.run_until_caught_up(Layout())
    # The second half goes on from the first one's snapshot.
    world.feeder.send(RECORDS // 2)
    world.feeder.finish()
    world.run_until_caught_up(Layout(workers=2))
    proxy.rules = []
    assert world.check() == [], world.printed()
    balance = world.balance()
    assert balance.records == RECORDS
    assert balance.records == balance.rows + balance.duplicates + balance.dead_letters
    for kind in {rule.kind for rule in rules}:
        assert proxy.faults[kind] > 0, (kind, proxy.faults)


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_a_bad_day_of_all_kinds_of_faults_loses_and_doubles_nothing(world: World, proxy: FaultProxy) -> None:
    run_through(world, proxy, MIXTURE)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_fault_loses_and_doubles_nothing(world: World, proxy: FaultProxy, name: str) -> None:
    run_through(world, proxy, KINDS[name])
