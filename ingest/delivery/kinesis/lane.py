"""The queue of one shard: what waits, and the one aggregated record that is on its way.

One record in flight a shard is what keeps the order of a device: nothing of it can overtake what was
refused. A record is filled with all that waits, up to a size, so a slow shard gets larger records.

When the service says of a call that it can never succeed, what was in it is suspect: it goes again in a call
of its own, then half of it, and so on, until the one user record is found that the service will never take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ingest.delivery.kinesis.aggregation import RECORD_OVERHEAD, aggregate
from ingest.delivery.kinesis.parts import Part
from routing.limits.bucket import TokenBucket
from routing.resilience.backoff import full_jitter_s
from routing.resilience.breaker import Breaker

BACK_OFF_BASE_S = 0.05
BACK_OFF_CAP_S = 5.0
ANY_NUMBER: Final = 1 << 62


class Lane:
    """One shard."""

    def __init__(
        self, shard_id: str, *, bytes_per_s: float, records_per_s: float, record_bytes_max: int, now_s: float
    ) -> None:
        self.shard_id = shard_id
        self.waiting: deque[Part] = deque()
        self._waiting_bytes = 0
        self.in_flight: list[Part] = []
        self.breaker = Breaker(failures_max=5, open_s=0.5, open_s_max=10.0)
        self.taken_s = now_s
        self._record_bytes_max = record_bytes_max
        self._bytes = TokenBucket(rate_per_s=bytes_per_s, burst=bytes_per_s, now_s=now_s)
        self._records = TokenBucket(rate_per_s=records_per_s, burst=records_per_s, now_s=now_s)
        self._failures = 0
        self._not_before_s = 0.0
        self._suspects = 0
        self._count_max = ANY_NUMBER

    @property
    def suspect(self) -> bool:
        """Return whether the next record must go in a call of its own."""
        return self._suspects > 0

    def append(self, part: Part) -> None:
        """Add what goes to this shard."""
        self.waiting.append(part)
        self._waiting_bytes += part.bytes

    def clear(self) -> None:
        """Forget what waits: it is routed anew."""
        self.waiting.clear()
        self._waiting_bytes = 0

    @property
    def is_full(self) -> bool:
        """Return whether what waits fills a record."""
        return self._waiting_bytes >= self._record_bytes_max

    def due_s(self, now_s: float) -> float | None:
        """Return how long until the next record may go; None while one is on its way or nothing waits."""
        if self.in_flight or not self.waiting:
            return None
        return max(0.0, self._not_before_s - now_s, self.breaker.due_s(now_s))

    def take(self, now_s: float) -> tuple[str, bytes] | None:
        """Fill a record with what waits; return (partition key, data), or None if the breaker is open."""
        if not self.breaker.allows(now_s):
            return None
        self.taken_s = now_s
        size = 0
        count_left = self._count_max
        taken = self.in_flight
        waiting = self.waiting
        while waiting and count_left:
            part = waiting[0]
            count = len(part.envelopes)
            cost = part.bytes + count * RECORD_OVERHEAD + len(part.key) + 4
            if size + cost <= self._record_bytes_max and count <= count_left:
                taken.append(waiting.popleft())
                size += cost
                count_left -= count
                continue
            fit = min(count_left, self._fitting(part, self._record_bytes_max - size - len(part.key) - 4))
            if fit == 0 and not taken:
                fit = 1  # a single user record that is larger than the target, but not than the limit
            if fit == count:
                taken.append(waiting.popleft())
            elif fit:
                first, rest = part.split(fit)
                taken.append(first)
                waiting[0] = rest
            break
        self._waiting_bytes -= sum(part.bytes for part in taken)
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
        self._failures = 0
        self.breaker.succeeded()
        if self._suspects:
            self._suspects = max(0, self._suspects - self._count())
            self._count_max = (self._suspects + 1) // 2 or ANY_NUMBER
        parts, self.in_flight = self.in_flight, []
        return parts

    def refused(self, now_s: float, random: Callable[[], float]) -> None:
        """Put the record back in front of what waits, to go again after a while."""
        self._put_back()
        self._failures += 1
        self.breaker.failed(now_s)
        wait_s = full_jitter_s(self._failures, base_s=BACK_OFF_BASE_S, cap_s=BACK_OFF_CAP_S, random=random)
        self._not_before_s = max(self._not_before_s, now_s + wait_s)

    def suspected(self, *, alone: bool) -> Part | None:
        """Hear that the call can never succeed; return the user record that is to blame, when it is known.

        The shard itself is well, so there is no back-off: at most log2 of the records in a record are tried.
        """
        self.breaker.succeeded()
        count = self._count()
        if alone and count == 1:
            [part] = self.in_flight
            self.in_flight = []
            self._suspects, self._count_max = 0, ANY_NUMBER
            return part
        self._suspects = count
        self._count_max = count // 2 if alone else count
        self._put_back()
        return None

    def _count(self) -> int:
        return sum(len(part.envelopes) for part in self.in_flight)

    def _put_back(self) -> None:
        self.waiting.extendleft(reversed(self.in_flight))
        self._waiting_bytes += sum(part.bytes for part in self.in_flight)
        self.in_flight = []
