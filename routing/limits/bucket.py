"""A token bucket that never queues: it charges, and says how long the caller must pause."""

from __future__ import annotations


class TokenBucket:
    """Tokens for one kind of cost; `rate_per_s` tokens a second, at most `burst` of them."""

    __slots__ = ("_burst", "_rate_per_s", "_tokens", "_updated_s")

    def __init__(self, *, rate_per_s: float, burst: float, now_s: float) -> None:
        assert rate_per_s > 0
        assert burst > 0
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._updated_s = now_s

    def take(self, cost: float, now_s: float) -> float:
        """Charge `cost` and return how long the caller must pause reading.

        The message already reached us, so it is charged even when that puts the bucket in debt; the
        pause pays the debt back. Nothing is queued here.
        """
        assert cost >= 0
        self._refill(now_s)
        self._tokens -= cost
        return -self._tokens / self._rate_per_s if self._tokens < 0 else 0.0

    def available(self, now_s: float) -> float:
        """Return the tokens that are there now; negative while in debt."""
        self._refill(now_s)
        return self._tokens

    def wait_s(self, cost: float, now_s: float) -> float:
        """Return how long until `cost` is there."""
        self._refill(now_s)
        return max(0.0, (min(cost, self._burst) - self._tokens) / self._rate_per_s)

    def _refill(self, now_s: float) -> None:
        elapsed_s = now_s - self._updated_s
        if elapsed_s > 0:
            self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate_per_s)
            self._updated_s = now_s
