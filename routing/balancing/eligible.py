"""Which servers may be chosen from: priorities, zones, health, and what to do when nobody is healthy.

1. Servers of weight 0 are never chosen.
2. The first priority of which a share of at least `failover_share` is healthy is used; if there is none, the
   priority with the largest healthy share.
3. Within it, `local_zone` alone is used while a share of at least `zone_share` of it is healthy.
4. Nobody healthy at all: all are used ("panic", as Envoy has it). Checks that fail everywhere say more of the
   checks than of the servers, and a request that may fail is better than one that must.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from routing.balancing.host import Host


def eligible(
    hosts: Iterable[Host], now_s: float, *, local_zone: str, failover_share: float, zone_share: float
) -> tuple[Host, ...]:
    """Return the servers to choose from, in the order given; empty only when none has a weight."""
    weighted = [host for host in hosts if host.endpoint.weight]
    priorities: dict[int, list[Host]] = {}
    for host in weighted:
        priorities.setdefault(host.endpoint.priority, []).append(host)
    best: list[Host] = []
    best_share = 0.0
    for _, group in sorted(priorities.items()):
        healthy = [host for host in group if host.healthy(now_s)]
        share = len(healthy) / len(group)
        if share > best_share:
            best, best_share = group, share
        if healthy and share >= failover_share:
            best = group
            break
    if not best:
        return tuple(weighted)
    return _of_zone(best, now_s, local_zone, zone_share)


def _of_zone(group: Sequence[Host], now_s: float, local_zone: str, zone_share: float) -> tuple[Host, ...]:
    healthy = tuple(host for host in group if host.healthy(now_s))
    if not local_zone:
        return healthy
    near = tuple(host for host in healthy if host.endpoint.zone == local_zone)
    of_zone = sum(host.endpoint.zone == local_zone for host in group)
    return near if near and len(near) >= zone_share * of_zone else healthy
