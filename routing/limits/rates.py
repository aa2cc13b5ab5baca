"""How fast callers of the API may call, on one node: a bucket a subject, each from a bounded table.

A bucket is forgotten only when it is full, since a new one is no different; when the table is full of others,
a subject that is not in it gets nothing. Where subjects are what anybody writes, so that a few could keep
all others out, the longest unused is forgotten in any case (`forgets`).
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from routing.limits.bucket import TokenBucket

EVICTIONS_MAX: Final = 8
"""How many of the longest unused are looked at for one that can be forgotten."""
ENOUGH: Final = 1.0 - 1e-9
"""A token, as far as a sum of floats can tell."""


class Rate(msgspec.Struct, frozen=True):
    """What a subject may do: `per_s` calls a second, and `burst` at once."""

    per_s: float
    burst: float


class Rates(Protocol):
    """Where tokens of subjects come from: this node (`LocalRates`), or all nodes (`valkey_lease`)."""

    def left(self, subject: str, rate: Rate, now_s: float) -> tuple[float, float]:
        """Return the tokens that may be spent here now, and those that are left in all."""

    def take(self, subject: str, rate: Rate, now_s: float) -> None:
        """Take a token, of which `left` has just told."""

    def wait_s(self, subject: str, rate: Rate, now_s: float) -> float:
        """Return how long until a token is there."""

    async def prepare(self, subject: str, rate: Rate) -> None:
        """Get tokens for what comes next, if that takes asking somebody."""


class LocalRates:
    """Exact on one node."""

    def __init__(self, *, subjects_max: int, forgets: bool = False) -> None:
        self._subjects_max = subjects_max
        self._forgets = forgets
        self._buckets: dict[str, tuple[Rate, TokenBucket]] = {}
        self.refused_for_room = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def left(self, subject: str, rate: Rate, now_s: float) -> tuple[float, float]:
        """Return the tokens that are there now, twice, since no other node has any."""
        bucket = self._bucket(subject, rate, now_s)
        tokens = 0.0 if bucket is None else bucket.available(now_s)
        return tokens, tokens

    def take(self, subject: str, rate: Rate, now_s: float) -> None:
        """Take a token, of which `left` has just told."""
        bucket = self._bucket(subject, rate, now_s)
        assert bucket is not None
        bucket.take(1.0, now_s)

    def wait_s(self, subject: str, rate: Rate, now_s: float) -> float:
        """Return how long until a token is there."""
        bucket = self._bucket(subject, rate, now_s)
        return 1.0 if bucket is None else bucket.wait_s(1.0, now_s)

    async def prepare(self, subject: str, rate: Rate) -> None:
        """Nobody has to be asked."""

    def _bucket(self, subject: str, rate: Rate, now_s: float) -> TokenBucket | None:
        """Return the bucket of a subject, now the one used last; None when there is no room."""
        found = self._buckets.pop(subject, None)
        if found is None and not self._make_room(now_s):
            self.refused_for_room += 1
            return None
        if found is None or found[0] != rate:
            bucket = TokenBucket(rate_per_s=rate.per_s, burst=rate.burst, now_s=now_s)
            if found is not None:  # on another plan; what is used up stays used up
                bucket.take(max(0.0, rate.burst - max(0.0, found[1].available(now_s))), now_s)
            found = (rate, bucket)
        self._buckets[subject] = found
        return found[1]

    def _make_room(self, now_s: float) -> bool:
        if len(self._buckets) < self._subjects_max:
            return True
        oldest = [name for name, _ in zip(self._buckets, range(EVICTIONS_MAX), strict=False)]
        for name in oldest:
            rate, bucket = self._buckets[name]
            if bucket.available(now_s) >= rate.burst:
                del self._buckets[name]
                return True
        if self._forgets:
            del self._buckets[oldest[0]]
        return self._forgets
