"""Decides whether peers may be accepted now; the rest wait in the kernel's backlog (decision 0010)."""

from __future__ import annotations

from routing.limits.bucket import TokenBucket

BATCH_MAX = 64
LAG_SHARE = 0.2
"""How much of a new observation goes into the smoothed loop lag."""


class Gate:
    """Accept rate, loop lag and connection cap of one worker."""

    def __init__(self, *, rate_per_s: float, lag_max_s: float, connections_max: int, now_s: float) -> None:
        self._rate = TokenBucket(rate_per_s=rate_per_s, burst=max(1.0, rate_per_s / 4), now_s=now_s)
        self._lag_max_s = lag_max_s
        self._connections_max = connections_max
        self.lag_s = 0.0

    def observe_lag(self, lag_s: float) -> None:
        """Take one measurement of how late the loop was."""
        self.lag_s += (lag_s - self.lag_s) * LAG_SHARE

    def admit(self, now_s: float) -> tuple[int, float]:
        """Return (how many to accept now, seconds to wait before asking again)."""
        if self.lag_s > self._lag_max_s:
            return 0, 0.05
        tokens = int(self._rate.available(now_s))
        if tokens < 1:
            return 0, max(0.001, self._rate.wait_s(1, now_s))
        return min(tokens, BATCH_MAX), 0.0

    def accepted(self, now_s: float, connections: int) -> bool:
        """Count one accepted peer beside `connections`; return False when the cap says to close it."""
        self._rate.take(1, now_s)
        return connections < self._connections_max
