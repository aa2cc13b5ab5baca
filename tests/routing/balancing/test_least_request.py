from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.balancing.least_request import LeastRequest
from tests.support.balancing import drawn, hosts, never

BELOW_ONE = 1 - 2**-53


def test_of_two_the_one_with_fewer_requests_is_asked() -> None:
    busy, idle = made = hosts(1, 1)
    busy.in_flight = 3
    policy = LeastRequest()
    policy.renew(made)
    seeded = random.Random(1)
    assert {policy.choose("", (), seeded.random) for _ in range(50)} == {idle}


def test_requests_count_by_weight() -> None:
    large, small = made = hosts(10, 1)
    large.in_flight, small.in_flight = 9, 1
    policy = LeastRequest()
    policy.renew(made)
    seeded = random.Random(1)
    assert {policy.choose("", (), seeded.random) for _ in range(50)} == {large}


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=6),
    st.lists(st.one_of(st.floats(0, BELOW_ONE), st.sampled_from([0.0, BELOW_ONE])), min_size=2, max_size=2),
)
def test_the_two_are_never_the_same_whatever_is_drawn(weights: list[int], numbers: list[float]) -> None:
    made = hosts(*weights)
    policy = LeastRequest()
    policy.renew(made)
    first = policy.choose("", (), drawn(numbers))
    assert first is not None
    first.in_flight = 1000 * 1000
    second = policy.choose("", (), drawn(numbers))
    assert second is not first


def test_idle_servers_are_asked_by_weight() -> None:
    made = hosts(1, 2, 5)
    policy = LeastRequest()
    policy.renew(made)
    seeded = random.Random(7)
    seen = Counter(policy.choose("", (), seeded.random) for _ in range(8000))
    for host in made:
        assert seen[host] == pytest.approx(1000 * host.endpoint.weight, rel=0.1)


def test_two_choices_keep_the_longest_queue_short() -> None:
    """With n requests on n servers: log log n and not log n (Mitzenmacher, 2001)."""
    made = hosts(*[1] * 500)
    policy = LeastRequest()
    policy.renew(made)
    seeded = random.Random(3)
    for _ in range(len(made)):
        chosen = policy.choose("", (), seeded.random)
        assert chosen is not None
        chosen.in_flight += 1
    assert max(host.in_flight for host in made) <= 4


def test_who_was_asked_already_is_passed_over_while_there_is_another() -> None:
    first, second, third = made = hosts(1, 1, 1)
    policy = LeastRequest()
    policy.renew(made)
    seeded = random.Random(1)
    assert {policy.choose("", [first], seeded.random) for _ in range(50)} == {second, third}
    assert policy.choose("", [first, second], never) is third
    assert policy.choose("", made, seeded.random) in made


def test_one_server_is_asked_and_without_any_there_is_none() -> None:
    policy = LeastRequest()
    assert policy.choose("", (), never) is None
    (only,) = made = hosts(1)
    policy.renew(made)
    assert policy.choose("", (), never) is only
    assert policy.choose("", [only], never) is only
