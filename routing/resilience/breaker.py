"""A circuit breaker: stop calling what fails, and find out with one call when it works again."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Whether calls go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after `failures_max` failures in a row; after a while, one probe decides.

    The while doubles with every failed probe, from `open_s` to `open_s_max`.
    """

    def __init__(self, *, failures_max: int, open_s: float, open_s_max: float) -> None:
        assert failures_max >= 1
        assert 0 < open_s <= open_s_max
        self._failures_max = failures_max
        self._open_s = open_s
        self._open_s_max = open_s_max
        self._failures = 0
        self._wait_s = open_s
        self._until_s = 0.0
        self.state = State.CLOSED

    def allows(self, now_s: float) -> bool:
        """Return whether a call may be made now; in HALF_OPEN only the one that asked first."""
        if self.state is State.OPEN and now_s >= self._until_s:
            self.state = State.HALF_OPEN
            return True
        return self.state is State.CLOSED

    def due_s(self, now_s: float) -> float:
        """Return how long until a call may be made; 0 when it may be now."""
        return max(0.0, self._until_s - now_s) if self.state is State.OPEN else 0.0

    def succeeded(self) -> None:
        """Hear that a call succeeded."""
        self.state = State.CLOSED
        self._failures = 0
        self._wait_s = self._open_s

    def failed(self, now_s: float) -> None:
        """Hear that a call failed."""
        self._failures += 1
        if self.state is State.HALF_OPEN:
            self._wait_s = min(self._open_s_max, self._wait_s * 2)
        elif self._failures < self._failures_max:
            return
        self.state = State.OPEN
        self._until_s = now_s + self._wait_s
