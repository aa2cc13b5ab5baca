"""What a shard has seen since it last told Locust: exact counts, told in batches.

Locust counts a request in about 10 µs, which at tens of thousands of messages a second would be most of a
core. So a batch is counted here, and added to Locust's entries with `StatsEntry.extend`, as a master adds
what workers report: nothing is sampled. A second in Locust's plots may have what came `FLUSH_S` before.
"""

from __future__ import annotations

import time
from typing import Final

from locust.env import Environment
from locust.stats import RequestStats, StatsEntry, StatsError, bucket_response_time

FLUSH_S: Final = 0.5
Key = tuple[str, str]
"""(method, name), as Locust has it."""


class Tally:
    """The batch of one shard."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._taken: dict[Key, tuple[list[float], list[int]]] = {}
        self._failed: dict[tuple[str, str, str], int] = {}

    def took(self, key: Key, seconds: float, size: int) -> None:
        """Count something that went well: how long it took, and its bytes."""
        times, sizes = self._taken.setdefault(key, ([], []))
        times.append(seconds)
        sizes.append(size)

    def failed(self, key: Key, why: str) -> None:
        """Count something that did not."""
        self._failed[(*key, why)] = self._failed.get((*key, why), 0) + 1

    def flush(self) -> None:
        """Tell Locust."""
        stats = self._environment.stats
        now_s = time.time()  # noqa: TID251  # Locust's statistics are by Unix time
        for (method, name), (times, sizes) in self._taken.items():
            _extend(stats, _batch(stats, (method, name), times, sum(sizes), now_s))
        for (method, name, why), count in self._failed.items():
            entry = StatsEntry(stats, name, method)
            entry.num_failures = count
            entry.num_fail_per_sec[int(now_s)] = count
            entry.num_requests = count
            entry.num_none_requests = count
            entry.num_reqs_per_sec[int(now_s)] = count
            entry.last_request_timestamp = now_s
            _extend(stats, entry)
            key = StatsError.create_key(method, name, why)
            error = stats.errors.setdefault(key, StatsError(method, name, why))
            error.occurrences += count
        self._taken.clear()
        self._failed.clear()


def _batch(stats: RequestStats, key: Key, times: list[float], size: int, now_s: float) -> StatsEntry:
    method, name = key
    entry = StatsEntry(stats, name, method)
    times_ms = [round(1000 * seconds) for seconds in times]
    entry.num_requests = len(times)
    entry.num_reqs_per_sec[int(now_s)] = len(times)
    entry.total_response_time = sum(times_ms)
    entry.min_response_time = min(times_ms)
    entry.max_response_time = max(times_ms)
    entry.total_content_length = size
    entry.last_request_timestamp = now_s
    for time_ms in times_ms:
        bucket = bucket_response_time(time_ms)
        entry.response_times[bucket] = entry.response_times.get(bucket, 0) + 1
    return entry


def _extend(stats: RequestStats, entry: StatsEntry) -> None:
    stats.get(entry.name, entry.method).extend(entry)
    stats.total.extend(entry)
