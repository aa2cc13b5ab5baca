from __future__ import annotations

from collections.abc import Sequence

from routing.balancing.consistent_hash import ConsistentHash
from routing.balancing.group import Group, policy_of
from routing.balancing.least_request import LeastRequest
from routing.balancing.round_robin import RoundRobin
from routing.gateway.routes_file import Ejection, Endpoint, Health, Upstream
from tests.support.balancing import never

ROUND_ROBIN = Upstream(
    balancing="weighted_round_robin", ejection=Ejection(failures_max=1, base_s=5, share_max=0.5)
)


def endpoints(*addresses: str, weight: int = 1) -> list[Endpoint]:
    return [Endpoint(address=address, weight=weight) for address in addresses]


def turns(group: Group, now_s: float, count: int) -> list[str]:
    chosen = [group.choose("", (), now_s, never) for _ in range(count)]
    return sorted({host.address for host in chosen if host is not None})


def group_of(addresses: Sequence[str], terms: Upstream = ROUND_ROBIN) -> Group:
    group = Group(terms)
    group.replace(endpoints(*addresses), 0.0)
    return group


def test_who_joins_and_who_leaves_is_told_and_who_stays_keeps_what_was_learned() -> None:
    group = group_of(["a:1", "b:1"])
    kept = group.hosts[1]
    kept.in_flight = 7
    joined, left = group.replace(endpoints("b:1", "c:1", weight=5), 1.0)
    assert ([host.address for host in joined], [host.address for host in left]) == (["c:1"], ["a:1"])
    assert group.hosts[0] is kept
    assert (kept.in_flight, kept.endpoint.weight) == (7, 5)
    assert turns(group, 1.0, 4) == ["b:1", "c:1"]


def test_who_has_left_gets_no_request_and_its_failures_count_no_more() -> None:
    group = group_of(["a:1", "b:1"])
    gone = group.hosts[0]
    group.replace(endpoints("b:1"), 1.0)
    assert turns(group, 1.0, 4) == ["b:1"]
    assert not group.failed(gone, 1.0)
    assert not group.uses(gone)


def test_who_is_ejected_returns_when_its_time_is_over() -> None:
    group = group_of(["a:1", "b:1"])
    assert group.failed(group.hosts[0], 0.0)
    assert turns(group, 4.9, 4) == ["b:1"]
    assert turns(group, 5.0, 4) == ["a:1", "b:1"]


def test_half_of_the_servers_stay_whatever_fails() -> None:
    group = group_of(["a:1", "b:1", "c:1", "d:1"])
    assert [group.failed(host, 0.0) for host in group.hosts] == [True, True, False, False]
    assert turns(group, 1.0, 8) == ["c:1", "d:1"]


def test_a_server_that_joins_others_waits_for_its_first_check() -> None:
    terms = Upstream(balancing="weighted_round_robin", health=Health(healthy_after=2))
    group = group_of(["a:1"], terms)
    assert turns(group, 0.0, 2) == ["a:1"]
    group.replace(endpoints("a:1", "b:1"), 0.0)
    assert turns(group, 0.0, 2) == ["a:1"]
    assert group.checked(group.hosts[1], 0.0, passed=True)
    assert turns(group, 0.0, 2) == ["a:1", "b:1"]


def test_each_policy_is_the_one_that_is_asked_for() -> None:
    assert isinstance(policy_of(Upstream(balancing="weighted_round_robin")), RoundRobin)
    assert isinstance(policy_of(Upstream(balancing="consistent_hash")), ConsistentHash)
    assert isinstance(policy_of(Upstream()), LeastRequest)


def test_without_endpoints_there_is_nobody() -> None:
    assert Group(Upstream()).choose("", (), 0.0, never) is None
