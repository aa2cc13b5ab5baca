"""Choosing a server for one request, of few and of many."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from routing.balancing.consistent_hash import ConsistentHash
from routing.balancing.group import Group
from routing.gateway.routes_file import Endpoint, Upstream

SIZES = (3, 100, 1000)
CALLS = 100


def group_of(terms: Upstream, size: int) -> Group:
    made = Group(terms)
    made.replace([Endpoint(address=f"10.0.{at // 250}.{at % 250 + 1}:80") for at in range(size)], 0.0)
    return made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("balancing", ["weighted_round_robin", "least_request", "consistent_hash"])
def test_choose(benchmark: Any, balancing: Any, size: int) -> None:
    group = group_of(Upstream(balancing=balancing), size)
    keys = itertools.cycle([f"tenant-{number}" for number in range(97)])
    chance = random.Random(1).random

    def calls() -> None:
        for key in itertools.islice(keys, CALLS):
            group.choose(key, (), 1.0, chance)

    benchmark(calls)


@pytest.mark.parametrize("size", SIZES)
def test_make_ring(benchmark: Any, size: int) -> None:
    hosts = group_of(Upstream(), size).hosts
    benchmark(lambda: ConsistentHash(load_max=0).renew(hosts))
