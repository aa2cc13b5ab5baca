"""Latencies counted in fixed buckets, whose counts add up over minutes, hours and processes.

Bucket bounds grow by a quarter from 100 us to 127 s, so that a quantile is at most 12 % off. Only buckets
that have something are kept.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from typing import Final

SMALLEST_S: Final = 1e-4
GROWTH: Final = 1.25
BUCKETS: Final = 64
BOUNDS_S: Final = tuple(SMALLEST_S * GROWTH**number for number in range(BUCKETS))
"""The upper bounds of the buckets; what is above the last is counted in it."""

Counts = dict[int, int]
"""How many were in each bucket."""


def bucket(elapsed_s: float) -> int:
    """Return the bucket of a latency."""
    return min(bisect.bisect_left(BOUNDS_S, elapsed_s), BUCKETS - 1)


def merged(parts: Iterable[Mapping[int, int]]) -> Counts:
    """Return the sum of counts."""
    total: Counts = {}
    for part in parts:
        for number, count in part.items():
            total[number] = total.get(number, 0) + count
    return total


def quantile_s(counts: Mapping[int, int], quantile: float) -> float:
    """Return the latency that a share `quantile` did not exceed, as the middle of its bucket; 0 for none."""
    assert 0 <= quantile <= 1
    wanted = max(1, math.ceil(quantile * sum(counts.values())))
    seen = 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            return BOUNDS_S[number] / math.sqrt(GROWTH)
    return 0.0
