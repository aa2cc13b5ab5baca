"""Weighted round robin, smooth as nginx has it: 5, 1, 1 gives a a b a c a a and not a a a a a b c."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from routing.balancing.host import Host
from routing.balancing.policy import Random


class RoundRobin:
    """Each turn all gain their weight; the one with most is chosen and pays what all gained.

    Hot: guarded by bench/test_balancing.py::test_choose.
    """

    def __init__(self) -> None:
        self._hosts: tuple[Host, ...] = ()

    def renew(self, hosts: Sequence[Host]) -> None:
        """Start anew with `hosts`."""
        self._hosts = tuple(hosts)
        for host in self._hosts:
            host.turn = 0

    def choose(self, key: str, avoid: Collection[Host], random: Random) -> Host | None:
        """Return whose turn it is."""
        del key, random
        hosts: Sequence[Host] = self._hosts
        if avoid:
            hosts = [host for host in hosts if host not in avoid] or hosts
        chosen: Host | None = None
        total = most = 0
        for host in hosts:
            weight = host.endpoint.weight
            total += weight
            host.turn = turn = host.turn + weight
            if chosen is None or turn > most:
                chosen, most = host, turn
        if chosen is not None:
            chosen.turn -= total
        return chosen
