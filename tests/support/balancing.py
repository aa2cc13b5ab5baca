"""Servers to choose from, and chances that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle

from routing.balancing.health import Checks
from routing.balancing.host import Host
from routing.gateway.routes_file import Endpoint


def host(address: str, *, weight: int = 1, zone: str = "", priority: int = 0) -> Host:
    """Return a server that is well."""
    endpoint = Endpoint(address=address, weight=weight, zone=zone, priority=priority)
    return Host(endpoint, checks=Checks(healthy_after=1, unhealthy_after=1, healthy=True))


def hosts(*weights: int) -> tuple[Host, ...]:
    """Return servers a:1, b:1 and so on, of these weights."""
    return tuple(
        host(f"{chr(ord('a') + index % 26)}:{1 + index // 26}", weight=weight)
        for index, weight in enumerate(weights)
    )


def never() -> float:
    """Stand where chance plays no part."""
    raise AssertionError("nothing here is left to chance")


def drawn(numbers: Iterable[float]) -> Callable[[], float]:
    """Return a chance that gives these numbers, again and again."""
    return cycle(numbers).__next__
