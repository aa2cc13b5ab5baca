"""Consistent hash on a ring: a key keeps its server while that is there, and few keys move when one goes.

The heaviest server has 160 points on the ring, fewer where there are more than 102 servers, so that the ring
has at most about 16,384; others have points by weight. With a `load_max` (Mirrokni, "Consistent Hashing with
Bounded Loads") a server that has more than so many times its share of the requests under way is passed over.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Final

from routing.balancing.host import Host
from routing.balancing.policy import Random

POINTS: Final = 160
POINTS_MAX: Final = 16_384
_DIGEST_POINTS: Final = 8
"""How many points of 8 bytes a digest of 64 gives."""


class ConsistentHash:
    """Hot: guarded by bench/test_balancing.py::test_choose."""

    def __init__(self, *, load_max: float) -> None:
        assert load_max == 0 or load_max >= 1
        self._load_max = load_max
        self._hosts: tuple[Host, ...] = ()
        self._points: list[int] = []
        self._owners: list[Host] = []
        self._weight = 0

    def renew(self, hosts: Sequence[Host]) -> None:
        """Make the ring of `hosts`."""
        self._hosts = tuple(hosts)
        self._weight = sum(host.endpoint.weight for host in hosts)
        heaviest = max((host.endpoint.weight for host in hosts), default=1)
        each = min(POINTS, POINTS_MAX // max(1, len(hosts)))
        ring: dict[int, Host] = {}
        for host in hosts:
            count = max(1, round(each * host.endpoint.weight / heaviest))
            ring.update(dict.fromkeys(_points(host.address, count), host))
        self._points = sorted(ring)
        self._owners = [ring[point] for point in self._points]

    def choose(self, key: str, avoid: Collection[Host], random: Random) -> Host | None:
        """Return the server of `key`, or any where the key is empty."""
        if not self._points:
            return None
        points = self._points
        start = bisect_right(points, _position(key)) if key else int(random() * len(points))
        owners = self._owners
        first = owners[start % len(owners)]
        if not avoid and not self._load_max:
            return first
        return self._walk(start, avoid) or first

    def _walk(self, start: int, avoid: Collection[Host]) -> Host | None:
        """Return the next on the ring who may be used."""
        passed = set(avoid)
        under_way = sum(host.in_flight for host in self._hosts) + 1
        owners = self._owners
        size = len(owners)
        for host in islice((owners[(start + step) % size] for step in range(size)), size):
            if host in passed:
                continue
            share = host.endpoint.weight / self._weight
            if not self._load_max or host.in_flight < math.ceil(self._load_max * under_way * share):
                return host
            passed.add(host)
            if len(passed) >= len(self._hosts):
                break
        return None


def _points(address: str, count: int) -> list[int]:
    points: list[int] = []
    for part in range(math.ceil(count / _DIGEST_POINTS)):
        digest = hashlib.blake2b(f"{address}#{part}".encode()).digest()
        points += [int.from_bytes(digest[at : at + 8], "big") for at in range(0, 64, 8)]
    return points[:count]


def _position(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
