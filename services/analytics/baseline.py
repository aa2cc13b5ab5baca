"""How unusual a reading is: its distance from what the series usually does, in standard deviations.

Mean and variance are exponentially weighted (T. Finch, "Incremental calculation of weighted mean and
variance", 2009): the first `memory` readings weigh the same, then the newest weighs 1/`memory`. A reading
is scored before it is learnt, and learnt clipped to `CLIP` deviations, as Huber's function does in S. Gelper,
R. Fried, C. Croux, "Robust forecasting with exponential and Holt-Winters smoothing" (2010): one spike moves
the baseline little, and a new level is learnt in the end, for what is clipped still widens the deviation.

The state is three numbers a series. Readings must come in the order of their times; the caller sees to it.
"""

from __future__ import annotations

from math import erf, sqrt
from typing import Final

import msgspec

CLIP: Final = 3.0
DEVIATION_MIN: Final = 1e-9
RELATIVE_DEVIATION_MIN: Final = 1e-6
"""Of the mean: what a series that never changed is taken to vary."""
SIGMA_MAX: Final = 1000.0


class Baseline(msgspec.Struct):
    """What a series usually does, after so many readings."""

    readings: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation, which is never zero."""
        return max(sqrt(self.variance), abs(self.mean) * RELATIVE_DEVIATION_MIN, DEVIATION_MIN)

    def take(self, value: float, *, memory: int, warm_up: int) -> float | None:
        """Learn a reading; return how far off it was in deviations, or None among the first `warm_up`.

        Hot: guarded by bench/test_rollups.py::test_score_readings.
        """
        distance = value - self.mean
        sigma = None
        if self.readings >= warm_up:
            deviation = self.deviation
            sigma = max(-SIGMA_MAX, min(SIGMA_MAX, distance / deviation))
            distance = max(-CLIP * deviation, min(CLIP * deviation, distance))
        readings = self.readings = min(self.readings + 1, memory)
        step = distance / readings
        self.mean += step
        self.variance = (1 - 1 / readings) * (self.variance + distance * step)
        return sigma


def score_of(sigma: float) -> float:
    """Return how unusual a distance is, 0 to 1: how much of a normal distribution is closer to its mean."""
    return erf(abs(sigma) / sqrt(2))
