"""How many calls may be under way: additive increase, multiplicative decrease (RFC 5681's idea)."""

from __future__ import annotations

DECREASE = 0.5


class AdaptiveConcurrency:
    """A limit from 1 to `limit_max` that grows by one a round of successes and halves on trouble."""

    def __init__(self, *, limit_max: int) -> None:
        assert limit_max >= 1
        self._limit_max = limit_max
        self._limit = min(2.0, float(limit_max))
        self.under_way = 0

    @property
    def limit(self) -> int:
        """The number of calls that may be under way."""
        return int(self._limit)

    def has_room(self) -> bool:
        """Return whether one more call may start."""
        return self.under_way < self.limit

    def started(self) -> None:
        """Count a call in."""
        self.under_way += 1

    def ended(self, *, trouble: bool) -> None:
        """Count a call out; `trouble` is a throttle, a time-out or an error of the service."""
        self.under_way -= 1
        if trouble:
            self._limit = max(1.0, self._limit * DECREASE)
        else:
            self._limit = min(float(self._limit_max), self._limit + 1.0 / self._limit)
