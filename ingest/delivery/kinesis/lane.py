"""The queue of one shard: what waits, and the one aggregated record that is on its way.

One record in flight a shard is what keeps the order of a device: nothing of it can overtake what was
refused. A record is filled with all that waits, up to a size, so a slow shard gets larger records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ingest.delivery.kinesis.aggregation import RECORD_OVERHEAD, aggregate
from routing.limits.bucket import TokenBucket
from routing.resilience.backoff import full_jitter_s
from routing.resilience.breaker import Breaker

BACK_OFF_BASE_S = 0.05
BACK_OFF_CAP_S = 5.0


class Part(msgspec.Struct, frozen=True):
    """Envelopes of one run: consecutive records of one device, of group `group`."""

    group: int
    first_index: int
    key: str
    envelopes: list[bytes]
    bytes: int

    def split(self, count: int) -> tuple[Part, Part]:
        """Return the first `count` envelopes and the rest."""
        first, rest = self.envelopes[:count], self.envelopes[count:]
        size = sum(map(len, first))
        return (
            Part(self.group, self.first_index, self.key, first, size),
            Part(self.group, self.first_index + count, self.key, rest, self.bytes - size),
        )


class Lane:
    """One shard."""

    def __init__(
        self, shard_id: str, *, bytes_per_s: float, records_per_s: float, record_bytes_max: int, now_s: float
    ) -> None:
        self.shard_id = shard_id
        self.waiting: deque[Part] = deque()
        self.in_flight: list[Part] = []
        self.record_bytes_max = record_bytes_max
        self.breaker = Breaker(failures_max=5, open_s=0.5, open_s_max=10.0)
        self._bytes = TokenBucket(rate_per_s=bytes_per_s, burst=bytes_per_s, now_s=now_s)
        self._records = TokenBucket(rate_per_s=records_per_s, burst=records_per_s, now_s=now_s)
        self._failures = 0
        self._not_before_s = 0.0

    def due_s(self, now_s: float) -> float | None:
        """Return how long until the next record may go; None while one is on its way or nothing waits."""
        if self.in_flight or not self.waiting:
            return None
        return max(0.0, self._not_before_s - now_s, self.breaker.due_s(now_s))

    def take(self, now_s: float) -> tuple[str, bytes] | None:
        """Fill a record with what waits; return (partition key, data), or None if the breaker is open."""
        if not self.breaker.allows(now_s):
            return None
        size = 0
        taken = self.in_flight
        waiting = self.waiting
        while waiting:
            part = waiting[0]
            cost = part.bytes + len(part.envelopes) * RECORD_OVERHEAD + len(part.key) + 4
            if size + cost <= self.record_bytes_max:
                taken.append(waiting.popleft())
                size += cost
                continue
            fit = self._fitting(part, self.record_bytes_max - size - len(part.key) - 4)
            if fit == 0 and not taken:
                fit = 1  # a single user record that is larger than the target, but not than the limit
            if fit == len(part.envelopes):
                taken.append(waiting.popleft())
            elif fit:
                first, rest = part.split(fit)
                taken.append(first)
                waiting[0] = rest
            break
        data = aggregate([(part.key, part.envelopes) for part in taken])
        pause_s = max(self._bytes.take(len(data), now_s), self._records.take(1, now_s))
        self._not_before_s = now_s + pause_s
        return taken[0].key, data

    @staticmethod
    def _fitting(part: Part, room: int) -> int:
        count = 0
        for envelope in part.envelopes:
            room -= len(envelope) + RECORD_OVERHEAD
            if room < 0:
                break
            count += 1
        return count

    def delivered(self) -> list[Part]:
        """Hear that the record is in the stream; return what was in it."""
        parts, self.in_flight = self.in_flight, []
        self._failures = 0
        self.breaker.succeeded()
        return parts

    def refused(self, now_s: float, random: Callable[[], float]) -> None:
        """Put the record back in front of what waits, to go again after a while."""
        self.put_back()
        self._failures += 1
        self.breaker.failed(now_s)
        wait_s = full_jitter_s(self._failures, base_s=BACK_OFF_BASE_S, cap_s=BACK_OFF_CAP_S, random=random)
        self._not_before_s = max(self._not_before_s, now_s + wait_s)

    def put_back(self) -> None:
        """Put the record back in front of what waits."""
        self.waiting.extendleft(reversed(self.in_flight))
        self.in_flight = []
