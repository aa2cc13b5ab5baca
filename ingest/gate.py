"""Decides whether peers may be accepted now; the rest wait in the kernel's backlog (decision 0010)."""

from __future__ import annotations

from routing.limits.bucket import TokenBucket

BATCH_MAX = 64
LAG_SHARE = 0.2
"""How much of a new observation goes into the smoothed loop lag."""
LAG_WAIT_S = 0.05
ROOM_WAIT_S = 0.01
"""How soon to look again whether a handshake has ended."""


class Gate:
    """Accept rate, loop lag and connection cap of one worker, over all its listeners."""

    def __init__(self, *, rate_per_s: float, lag_max_s: float, connections_max: int, now_s: float) -> None:
        self._rate = TokenBucket(rate_per_s=rate_per_s, burst=max(1.0, rate_per_s / 4), now_s=now_s)
        self._lag_max_s = lag_max_s
        self._connections_max = connections_max
        self.lag_s = 0.0
        self.handshakes = 0

    def observe_lag(self, lag_s: float) -> None:
        """Take one measurement of how late the loop was."""
        self.lag_s += (lag_s - self.lag_s) * LAG_SHARE

    def admit(self, now_s: float, room: int) -> tuple[int, float]:
        """Return (how many to accept now, seconds to wait before asking again).

        `room` is how many more handshakes the listener may have under way.
        """
        if self.lag_s > self._lag_max_s:
            return 0, LAG_WAIT_S
        if room < 1:
            return 0, ROOM_WAIT_S
        tokens = int(self._rate.available(now_s))
        if tokens < 1:
            return 0, max(0.001, self._rate.wait_s(1, now_s))
        return min(tokens, room, BATCH_MAX), 0.0

    def accepted(self, now_s: float, connections: int) -> bool:
        """Count one accepted peer beside `connections`; return False when the cap says to close it.

        Else its handshake is under way, until the caller says `settled`.
        """
        self._rate.take(1, now_s)
        if connections + self.handshakes >= self._connections_max:
            return False
        self.handshakes += 1
        return True

    def settled(self) -> None:
        """Count a handshake out: it failed, or is a connection now."""
        assert self.handshakes > 0
        self.handshakes -= 1
