"""Endpoints by where they are, as one caller sees them.

Source: Envoy, "Priority levels" and "Locality weighted load balancing". Priorities have no gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from routing.mesh.compile.messages import Config, number
from routing.mesh.compile.proxy import Endpoint, Standing
from routing.mesh.model.locality import Locality

Host = tuple[Endpoint, Config]
"""An endpoint, and what Envoy is told of it."""


def groups(hosts: Sequence[Host], standing: Standing, policy: Locality | None) -> Config:
    """Return the endpoints of a callee in the order in which this caller prefers them."""
    if policy is None:
        return {"endpoints": [{"lb_endpoints": [config for _, config in hosts]}]}
    by_place: dict[tuple[int, str, str], list[Config]] = {}
    for endpoint, config in hosts:
        key = _rank(endpoint, standing, policy), endpoint.region, endpoint.zone
        by_place.setdefault(key, []).append(config)
    ranks = sorted({rank for rank, _, _ in by_place})
    made: list[Config] = []
    for rank, region, zone in sorted(by_place):
        group: Config = {
            "locality": {"region": region, "zone": zone},
            "lb_endpoints": by_place[rank, region, zone],
            "priority": ranks.index(rank),
        }
        made.append(group)
    factor = math.ceil(100 * 100 / policy.healthy_percent_min)  # rounded down, one percent would go away
    return {"endpoints": made, "policy": {"overprovisioning_factor": number(factor)}}


def _rank(endpoint: Endpoint, standing: Standing, policy: Locality) -> int:
    """Return how far away an endpoint is: 0 is preferred."""
    if endpoint.region == standing.region:
        same_zone = endpoint.zone == standing.zone
        return 0 if policy.prefer == "REGION" or same_zone else 1
    if endpoint.region in policy.failover:
        return 2 + policy.failover.index(endpoint.region)
    return 2 + len(policy.failover)
