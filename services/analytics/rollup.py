"""A roll-up: what is known of the readings of one series in one window, merged in any order.

Mean and variance as in T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm
for computing sample variances" (1979), of which Welford's method is the case of one reading more.

Of readings of the same time the smallest counts as the first and the largest as the last, so that it does
not matter in which order they came. Numbers are at most `MAGNITUDE_MAX`, so that no sum overflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from services.analytics.sketch import Sketch

MAGNITUDE_MAX: Final = 1e100


class Rollup(msgspec.Struct, array_like=True):
    """What is known of `count` numbers, and of `texts` that were only counted. Times are Unix ms."""

    count: int = 0
    texts: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    total: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """The sum of the squares of the distances from the mean."""
    first_ms: int = 0
    first: float = 0.0
    last_ms: int = 0
    last: float = 0.0
    sketch: Sketch = msgspec.field(default_factory=Sketch)

    def add(self, ts_ms: int, value: float) -> None:
        """Take a reading, which is at most `MAGNITUDE_MAX`.

        Hot: guarded by bench/test_rollups.py::test_add_readings.
        """
        self.sketch.add(value)
        count = self.count = self.count + 1
        if count == 1:
            self.minimum = self.maximum = self.first = self.last = self.total = self.mean = value
            self.first_ms = self.last_ms = ts_ms
            return
        distance = value - self.mean
        self.mean += distance / count
        self.squares += distance * (value - self.mean)
        self.total += value
        if value < self.minimum:  # noqa: PLR1730  # hot: a call costs more
            self.minimum = value
        if value > self.maximum:  # noqa: PLR1730  # the same
            self.maximum = value
        if ts_ms < self.first_ms or (ts_ms == self.first_ms and value < self.first):
            self.first_ms, self.first = ts_ms, value
        if ts_ms > self.last_ms or (ts_ms == self.last_ms and value > self.last):
            self.last_ms, self.last = ts_ms, value

    def merge(self, other: Rollup) -> None:
        """Take what another roll-up has taken."""
        self.texts += other.texts
        if other.count <= 1:
            if other.count:
                self.add(other.first_ms, other.first)
            return
        self.sketch.merge(other.sketch)
        if not self.count:
            self.minimum, self.maximum = other.minimum, other.maximum
            self.first_ms, self.first = other.first_ms, other.first
            self.last_ms, self.last = other.last_ms, other.last
        count = self.count + other.count
        distance = other.mean - self.mean
        self.squares += other.squares + distance * distance * self.count * other.count / count
        self.mean = self.mean + distance * other.count / count if self.count else other.mean
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.first_ms, self.first = min((self.first_ms, self.first), (other.first_ms, other.first))
        self.last_ms, self.last = max((self.last_ms, self.last), (other.last_ms, other.last))
        self.count = count

    @property
    def variance(self) -> float:
        """The variance of the readings themselves (divided by n, not n - 1)."""
        return self.squares / self.count if self.count else 0.0

    @property
    def rate_per_s(self) -> float | None:
        """The change from the first to the last reading a second, or None when they are of one time."""
        elapsed_ms = self.last_ms - self.first_ms
        return (self.last - self.first) * 1000 / elapsed_ms if elapsed_ms else None

    def quantiles(self, qs: Sequence[float]) -> list[float]:
        """Return for each q about the reading below which the part q of the others is; there must be one."""
        return [min(max(found, self.minimum), self.maximum) for found in self.sketch.quantiles(qs)]


_DECODER: Final = msgspec.msgpack.Decoder(Rollup)
encoded: Final = msgspec.msgpack.Encoder().encode
"""Return a roll-up as it is stored."""
decoded: Final = _DECODER.decode
"""Return a roll-up that was stored."""


def merged(stored: bytes, more: bytes) -> bytes:
    """Return two stored roll-ups as one; the store calls it from SQL.

    Hot: guarded by bench/test_rollups.py::test_merge_stored_windows.
    """
    rollup = decoded(stored)
    rollup.merge(decoded(more))
    return encoded(rollup)
