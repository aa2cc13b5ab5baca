"""Charging one read to its device and tenant, whose rows are in memory that two workers share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import corpus
from bench.rig import memory_of, release
from ingest.node_memory import NodeMemory
from routing.limits.allowance import LEASE_S, Allowance, Allowances
from routing.limits.terms import Over, Policy, Rates, Terms

WORKERS = 2
NO_LIMIT = Rates(messages_per_s=0, bytes_per_s=0, burst_s=2.0, connections_max=0)
NEVER_REACHED = Rates(messages_per_s=1e12, bytes_per_s=1e15, burst_s=2.0, connections_max=0)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[NodeMemory]:
    made = memory_of(WORKERS, tmp_path)
    yield made
    release(made)


def allowance_of(memory: NodeMemory, rates: Rates) -> Allowance:
    allowances = Allowances(
        devices=memory.devices,
        tenants=memory.tenants,
        terms=lambda _: Terms(tenant=rates, device=rates, policy=Policy.REFUSE),
        worker=0,
        workers=WORKERS,
        idle_max=1,
    )
    return allowances.get(corpus.TENANT, corpus.device(0))


@pytest.mark.parametrize("refuse", [False, True], ids=["pause", "refuse"])
@pytest.mark.parametrize(
    ("rates", "between_s"),
    [(NO_LIMIT, 0.0), (NEVER_REACHED, 0.0), (NEVER_REACHED, 2 * LEASE_S)],
    ids=["unlimited", "lease held", "lease drawn"],
)
def test_charge(benchmark: Any, memory: NodeMemory, rates: Rates, between_s: float, *, refuse: bool) -> None:
    allowance = allowance_of(memory, rates)
    times_s = itertools.count(1.0, between_s)

    def charge() -> tuple[int, float, Over]:
        return allowance.charge(1, 105, next(times_s), refuse=refuse)

    assert benchmark(charge) == (1, 0.0, Over.NOBODY)
