"""What proxies counted between two readings of their statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec


class Counts(msgspec.Struct, frozen=True):
    """Answers of a cluster: how many, how many of them failed, and how long they took.

    `within` has how many took at most so many milliseconds, the last bound being infinite; it may run behind
    `requests`, as proxies add to it every few seconds.
    """

    requests: int = 0
    failures: int = 0
    within: dict[float, int] = {}

    def __add__(self, other: Counts) -> Counts:
        """Add counts; of two that count by different bounds, those that both have stay."""
        within = self.within or other.within
        if self.within and other.within:
            both = self.within.keys() & other.within.keys()
            within = {bound: self.within[bound] + other.within[bound] for bound in both}
        return Counts(self.requests + other.requests, self.failures + other.failures, within)

    @property
    def failure_rate(self) -> float:
        """The part that failed; 0 of nothing."""
        return self.failures / self.requests if self.requests else 0.0

    @property
    def timed(self) -> int:
        """How many it is known of how long they took."""
        return self.within.get(math.inf, 0)

    def bound(self, least_ms: float) -> float:
        """Return the first bound that is no less, or else infinity."""
        return min((bound for bound in self.within if bound >= least_ms), default=math.inf)

    def slower(self, bound_ms: float) -> int:
        """Return how many took more than a bound."""
        return max(self.timed - self.within.get(bound_ms, self.timed), 0)

    def quantile_ms(self, part: float) -> float | None:
        """Return how long `part` of them took at most, as far as the bounds tell; None of nothing."""
        if not self.timed:
            return None
        wanted, below, low = part * self.timed, 0, 0.0
        for bound in sorted(self.within):
            count = self.within[bound]
            if count >= wanted:
                if math.isinf(bound) or count == below:
                    return low
                return low + (bound - low) * (wanted - below) / (count - below)
            below, low = count, bound
        return low


Clusters = Mapping[str, Counts]
"""What a proxy counted since it started, by cluster; one that it never called need not be there."""
Reading = Mapping[str, Clusters]
"""What each proxy that could be asked counted, by where it was asked."""


def grown(before: Reading, after: Reading) -> dict[str, Counts]:
    """Return what was counted from one reading to another, by cluster.

    A counter that is less than it was has begun again. A proxy that is there for the first time counts from
    its next reading on.
    """
    made: dict[str, Counts] = {}
    for proxy, clusters in after.items():
        if proxy in before:
            for cluster, now in clusters.items():
                then = before[proxy].get(cluster, Counts())
                made[cluster] = made.get(cluster, Counts()) + _difference(then, now)
    return made


def latest(before: Reading, after: Reading) -> Reading:
    """Return the last reading of each proxy: one that could not be asked stays as it was."""
    return {**before, **after}


def _difference(before: Counts, after: Counts) -> Counts:
    if after.requests < before.requests or after.failures < before.failures or after.timed < before.timed:
        return after
    return Counts(
        after.requests - before.requests,
        after.failures - before.failures,
        {bound: count - before.within.get(bound, 0) for bound, count in after.within.items()},
    )
