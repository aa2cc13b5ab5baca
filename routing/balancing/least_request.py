"""Least request with two random choices (Mitzenmacher, "The Power of Two Choices").

Both are drawn by weight, the second without the first; the one with fewer requests for its weight is chosen,
the first when they are equal. So an idle upstream is used by weight, and a loaded one evens out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from routing.balancing.host import Host
from routing.balancing.policy import Random


class LeastRequest:
    """Hot: guarded by bench/test_balancing.py::test_choose."""

    def __init__(self) -> None:
        self._hosts: tuple[Host, ...] = ()
        self._ends: list[int] = []

    def renew(self, hosts: Sequence[Host]) -> None:
        """Choose from `hosts` from now on."""
        self._hosts = tuple(hosts)
        self._ends = list(accumulate(host.endpoint.weight for host in hosts))

    def choose(self, key: str, avoid: Collection[Host], random: Random) -> Host | None:
        """Return the less loaded of two."""
        del key
        hosts, ends = self._hosts, self._ends
        if avoid and (left := tuple(host for host in hosts if host not in avoid)):
            hosts, ends = left, list(accumulate(host.endpoint.weight for host in left))
        if len(hosts) < 2:
            return hosts[0] if hosts else None
        total = ends[-1]
        index = bisect_right(ends, random() * total)
        first = hosts[index]
        weight = first.endpoint.weight
        point = random() * (total - weight)
        if point >= ends[index] - weight:
            point += weight  # leaps over the first
        # A product may round up to its bound; then it is the last that is not the first.
        at = bisect_right(ends, point)
        second = hosts[at if at < len(hosts) else index - 1]
        if second.in_flight * weight < first.in_flight * second.endpoint.weight:
            return second
        return first
