from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routing.balancing.round_robin import RoundRobin
from tests.support.balancing import hosts, never


def turns(policy: RoundRobin, count: int) -> list[str]:
    chosen = [policy.choose("", (), never) for _ in range(count)]
    return [host.address for host in chosen if host is not None]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 3))
def test_each_round_gives_each_server_exactly_its_weight(weights: list[int], rounds: int) -> None:
    made = hosts(*weights)
    policy = RoundRobin()
    policy.renew(made)
    for _ in range(rounds):
        seen = Counter(turns(policy, sum(weights)))
        assert seen == {host.address: host.endpoint.weight for host in made}


def test_a_heavy_server_is_asked_between_the_others_and_not_in_a_row() -> None:
    policy = RoundRobin()
    policy.renew(hosts(5, 1, 1))
    assert "".join(address[0] for address in turns(policy, 7)) == "aabacaa"


def test_who_was_asked_already_is_passed_over_while_there_is_another() -> None:
    first, second = made = hosts(1, 1)
    policy = RoundRobin()
    policy.renew(made)
    assert {policy.choose("", [first], never) for _ in range(4)} == {second}
    assert policy.choose("", made, never) in made


def test_without_servers_there_is_none() -> None:
    policy = RoundRobin()
    assert policy.choose("", (), never) is None
    policy.renew(hosts(1))
    policy.renew([])
    assert policy.choose("", (), never) is None
