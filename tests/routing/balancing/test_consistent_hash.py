from __future__ import annotations

import random
from collections import Counter

import pytest

from routing.balancing.consistent_hash import ConsistentHash
from routing.balancing.host import Host
from tests.support.balancing import drawn, hosts, never

KEYS = [f"tenant-{number}" for number in range(5000)]


def ring_of(made: tuple[Host, ...], *, load_max: float = 0) -> ConsistentHash:
    policy = ConsistentHash(load_max=load_max)
    policy.renew(made)
    return policy


def owners(policy: ConsistentHash) -> dict[str, Host | None]:
    return {key: policy.choose(key, (), never) for key in KEYS}


def test_a_key_stays_with_its_server_whatever_order_discovery_has() -> None:
    made = hosts(*[1] * 7)
    assert owners(ring_of(made)) == owners(ring_of(tuple(reversed(made))))


def test_keys_are_shared_by_weight() -> None:
    made = hosts(1, 1, 2)
    seen = Counter(owners(ring_of(made)).values())
    for host in made:
        assert seen[host] == pytest.approx(len(KEYS) * host.endpoint.weight / 4, rel=0.25)


def test_who_leaves_takes_only_its_own_keys_along() -> None:
    made = hosts(*[1] * 10)
    before, after = owners(ring_of(made)), owners(ring_of(made[:-1]))
    moved = [key for key in KEYS if before[key] is not after[key]]
    assert moved
    assert {before[key] for key in moved} == {made[-1]}


def test_the_keys_of_who_leaves_go_to_all_the_others() -> None:
    made = hosts(*[1] * 5)
    before, after = owners(ring_of(made)), owners(ring_of(made[:-1]))
    seen = Counter(after[key] for key in KEYS if before[key] is made[-1])
    assert set(seen) == set(made[:-1])


def test_a_second_try_goes_to_the_next_on_the_ring_which_is_always_the_same() -> None:
    made = hosts(1, 1, 1)
    policy = ring_of(made)
    first = policy.choose("acme", (), never)
    assert first is not None
    second = policy.choose("acme", [first], never)
    assert second not in {None, first}
    assert policy.choose("acme", [first], never) is second
    assert second is ring_of(tuple(host for host in made if host is not first)).choose("acme", (), never)
    assert policy.choose("acme", made, never) is first


def test_a_server_that_has_its_share_passes_a_key_on() -> None:
    made = hosts(1, 1, 1)
    policy = ring_of(made, load_max=1.25)
    first = policy.choose("acme", (), never)
    assert first is not None
    first.in_flight = 10
    assert policy.choose("acme", (), never) is not first


def test_no_server_has_more_than_its_bound_under_the_hottest_key() -> None:
    """Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads (2018)."""
    made = hosts(1, 1, 1, 1)
    policy = ring_of(made, load_max=1.5)
    for _ in range(400):
        chosen = policy.choose("acme", (), never)
        assert chosen is not None
        chosen.in_flight += 1
    assert max(host.in_flight for host in made) <= 1.5 * 400 / 4 + 1


def test_without_a_key_any_server_is_asked() -> None:
    made = hosts(1, 1, 1)
    policy = ring_of(made)
    seeded = random.Random(1)
    assert {policy.choose("", (), seeded.random) for _ in range(50)} == set(made)
    assert policy.choose("", (), drawn([1 - 2**-53])) in made


def test_many_servers_have_no_more_points_than_the_bound() -> None:
    policy = ring_of(hosts(*[1] * 1000))
    assert len(policy._points) <= 16_384 + 1000


def test_without_servers_there_is_none() -> None:
    assert ring_of(()).choose("acme", (), never) is None
