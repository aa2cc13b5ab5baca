from __future__ import annotations

from routing.balancing.eligible import eligible
from routing.balancing.host import Host
from tests.support.balancing import host

NOW_S = 100.0


def well(hosts: list[Host], count: int) -> list[Host]:
    """Leave only the first `count` healthy."""
    for index, each in enumerate(hosts):
        each.checks.healthy = index < count
    return hosts


def chosen(
    *hosts: Host, zone: str = "", failover_share: float = 0.5, zone_share: float = 0.7
) -> tuple[Host, ...]:
    return eligible(hosts, NOW_S, local_zone=zone, failover_share=failover_share, zone_share=zone_share)


def of(count: int, *, zone: str = "", priority: int = 0) -> list[Host]:
    return [
        host(f"{zone or 'z'}{priority}-{index}:1", zone=zone, priority=priority) for index in range(count)
    ]


def test_all_that_are_well_are_used_and_none_else() -> None:
    hosts = well(of(3), 2)
    assert chosen(*hosts) == tuple(hosts[:2])


def test_who_is_ejected_is_left_out_until_its_time_is_over() -> None:
    first, second = of(2)
    first.record.until_s = NOW_S + 1
    assert chosen(first, second) == (second,)
    first.record.until_s = NOW_S
    assert chosen(first, second) == (first, second)


def test_no_weight_means_no_request() -> None:
    first, second = host("a:1", weight=0), host("b:1")
    assert chosen(first, second) == (second,)
    assert chosen(first) == ()


def test_when_none_is_well_all_are_used() -> None:
    near, far = well(of(2), 0), well(of(2, priority=1), 0)
    assert chosen(*near, *far) == (*near, *far)


def test_the_next_priority_is_used_when_too_few_of_the_first_are_well() -> None:
    near, far = of(4), of(4, priority=1)
    assert chosen(*well(near, 2), *far) == tuple(near[:2])
    assert chosen(*well(near, 1), *far) == tuple(far)
    assert chosen(*well(near, 4), *far) == tuple(near)


def test_when_no_priority_has_enough_the_best_of_them_is_used() -> None:
    near, far = well(of(10), 2), well(of(10, priority=1), 4)
    assert chosen(*near, *far) == tuple(far[:4])
    assert chosen(*well(near, 4), *far) == tuple(near[:4])


def test_the_own_zone_is_preferred_while_enough_of_it_is_well() -> None:
    near, far = of(4, zone="a"), of(4, zone="b")
    assert chosen(*near, *far, zone="a") == tuple(near)
    assert chosen(*well(near, 3), *far, zone="a") == tuple(near[:3])
    assert chosen(*well(near, 2), *far, zone="a") == (*near[:2], *far)


def test_a_zone_without_servers_uses_those_of_others() -> None:
    far = of(2, zone="b")
    assert chosen(*far, zone="a") == tuple(far)
    assert chosen(*far, zone="a", zone_share=0.0) == tuple(far)


def test_priority_comes_before_zone() -> None:
    near, far = of(1, zone="b"), of(1, zone="a", priority=1)
    assert chosen(*near, *far, zone="a") == tuple(near)
