"""DDSketch: quantiles of a stream with a bounded relative error, merged without loss.

From C. Masson, J. Rim, H. Lee, "DDSketch: A fast and fully-mergeable quantile sketch with relative-error
guarantees", VLDB 2019 (arXiv:1908.10693): bins grow by `GAMMA`, so that the middle of a bin is at most
`RELATIVE_ERROR` away from everything in it. A sketch depends on what was added, not on the order.

- A quantile q is within `RELATIVE_ERROR` of the reading of rank floor(q * (n - 1)).
- At most `BINS_MAX` bins a sign. What is smaller in magnitude than they reach is counted in the lowest one,
  as in the paper: the error holds while the largest and the asked reading are less than e^20 apart.
- Magnitudes under `MAGNITUDE_MIN` are zero.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, exp, log
from typing import Final

import msgspec

RELATIVE_ERROR: Final = 0.01
GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
BINS_MAX: Final = 1024
MAGNITUDE_MIN: Final = 1e-100
LOG_GAMMA: Final = log(GAMMA)
MIDDLE: Final = 2 / (GAMMA + 1)
Bins = dict[int, int]


class Sketch(msgspec.Struct, array_like=True):
    """How many readings are in which bin; bin i holds magnitudes in (GAMMA^(i-1), GAMMA^i]."""

    zeros: int = 0
    positive: Bins = msgspec.field(default_factory=dict)
    negative: Bins = msgspec.field(default_factory=dict)

    def add(self, value: float) -> None:
        """Count a finite reading.

        Hot: guarded by bench/test_rollups.py::test_add_readings.
        """
        if value > MAGNITUDE_MIN:
            bins, index = self.positive, ceil(log(value) / LOG_GAMMA)
        elif value < -MAGNITUDE_MIN:
            bins, index = self.negative, ceil(log(-value) / LOG_GAMMA)
        else:
            self.zeros += 1
            return
        bins[index] = bins.get(index, 0) + 1
        if len(bins) > BINS_MAX:
            _collapse(bins)

    def merge(self, other: Sketch) -> None:
        """Count what another sketch has counted."""
        self.zeros += other.zeros
        for bins, more in ((self.positive, other.positive), (self.negative, other.negative)):
            for index, count in more.items():
                bins[index] = bins.get(index, 0) + count
            if len(bins) > BINS_MAX:
                _collapse(bins)

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Return for each q about the reading below which the part q of the others is; there must be one."""
        counts = [(-_middle(index), self.negative[index]) for index in sorted(self.negative, reverse=True)]
        counts.append((0.0, self.zeros))
        counts += [(_middle(index), self.positive[index]) for index in sorted(self.positive)]
        ends = list(itertools.accumulate(count for _, count in counts))
        assert ends[-1] > 0, "a sketch without readings has no quantile"
        return [counts[bisect_right(ends, int(q * (ends[-1] - 1)))][0] for q in qs]


def _middle(index: int) -> float:
    return MIDDLE * exp(index * LOG_GAMMA)


def _collapse(bins: Bins) -> None:
    """Count the lowest bins in the lowest one that is kept."""
    lowest = sorted(bins)[: len(bins) - BINS_MAX + 1]
    kept = lowest.pop()
    for index in lowest:
        bins[kept] += bins.pop(index)
