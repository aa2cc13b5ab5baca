"""In which order a caller prefers endpoints, by where it is and they are."""

from __future__ import annotations

import itertools

import pytest

from routing.mesh.compile.localities import groups
from routing.mesh.compile.proxy import Endpoint, Standing
from routing.mesh.model.locality import Locality

HOME = Standing("eu-central-1", "eu-central-1a")
PLACES = ("eu-central-1a", "eu-central-1b", "eu-west-1a", "us-east-1a", "us-west-2a")


def order(
    policy: Locality, standing: Standing = HOME, places: tuple[str, ...] = PLACES
) -> dict[int, list[str]]:
    """Return the zones by priority."""
    hosts = [(Endpoint("10.0.0.1", region=zone[:-1], zone=zone), {"at": zone}) for zone in places]
    made = groups(hosts, standing, policy)["endpoints"]
    by_priority = itertools.groupby(made, key=lambda each: each["priority"])
    return {
        priority: [host["at"] for each in of for host in each["lb_endpoints"]] for priority, of in by_priority
    }


def test_one_s_own_region_comes_before_the_order_of_fail_over_and_that_before_all_others() -> None:
    policy = Locality(prefer="REGION", failover=("us-east-1", "eu-west-1"))
    assert order(policy) == {
        0: ["eu-central-1a", "eu-central-1b"],
        1: ["us-east-1a"],
        2: ["eu-west-1a"],
        3: ["us-west-2a"],
    }


def test_one_s_own_zone_comes_before_one_s_own_region() -> None:
    assert order(Locality(prefer="ZONE")) == {
        0: ["eu-central-1a"],
        1: ["eu-central-1b"],
        2: ["eu-west-1a", "us-east-1a", "us-west-2a"],
    }


def test_priorities_have_no_gaps_where_nobody_is_near() -> None:
    policy = Locality(prefer="ZONE", failover=("us-east-1",))
    assert order(policy, places=("us-west-2a", "us-east-1a")) == {0: ["us-east-1a"], 1: ["us-west-2a"]}


def test_a_caller_that_says_no_place_prefers_by_the_order_of_fail_over() -> None:
    policy = Locality(prefer="REGION", failover=("eu-west-1",))
    assert order(policy, Standing()) == {
        0: ["eu-west-1a"],
        1: ["eu-central-1a", "eu-central-1b", "us-east-1a", "us-west-2a"],
    }


@pytest.mark.parametrize(("healthy", "factor"), [(70, 143), (80, 125), (100, 100), (1, 10_000)])
def test_a_place_takes_all_while_so_many_are_well(healthy: int, factor: int) -> None:
    made = groups([], HOME, Locality(prefer="REGION", healthy_percent_min=healthy))
    assert made["policy"] == {"overprovisioning_factor": {"value": factor}}


def test_without_a_policy_all_are_equal() -> None:
    hosts = [(Endpoint("10.0.0.1", region=region), {"at": region}) for region in ("eu-west-1", "us-east-1")]
    assert groups(hosts, HOME, None) == {
        "endpoints": [{"lb_endpoints": [{"at": "eu-west-1"}, {"at": "us-east-1"}]}]
    }
