"""What is counted of a feed. Labels are from closed sets."""

from __future__ import annotations

import enum

from prometheus_client import CollectorRegistry, Counter, Gauge


class Trouble(enum.Enum):
    """Why a feed waits and tries again."""

    UNAVAILABLE = "unavailable"
    THROTTLED = "throttled"
    EXPIRED = "expired"


class FeedMetrics:
    """The counters of the one feed of a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Gauge(
            "headworks_feed_lag_seconds", "How far behind the newest record the feed is", registry=registry
        )
        self._records = Counter(
            "headworks_feed_records", "Records taken, duplicates apart", registry=registry
        )
        self._duplicates = Counter(
            "headworks_feed_duplicates", "Records dropped, for their ids had been there", registry=registry
        )
        self._malformed = Counter(
            "headworks_feed_malformed", "Records that are not ours, dropped", registry=registry
        )
        self._missed = Counter(
            "headworks_feed_missed", "Records that were gone before they could be read", registry=registry
        )
        self._gaps = Counter(
            "headworks_feed_gaps", "Times that records were gone before they could be read", registry=registry
        )
        self._troubles = Counter(
            "headworks_feed_troubles", "Reads to be tried again", ["trouble"], registry=registry
        )
        self._shards = Gauge("headworks_feed_shards", "Shards that are being read", registry=registry)
        self._behind_s: dict[str, float] = {}

    def taken(self, fresh: int, duplicates: int) -> None:
        """Count a batch that has taken effect."""
        self._records.inc(fresh)
        self._duplicates.inc(duplicates)

    def malformed(self, count: int) -> None:
        """Count records that could not be read."""
        self._malformed.inc(count)

    def missed(self, count: int) -> None:
        """Count a gap, of `count` records where that is known, else 0."""
        self._gaps.inc()
        self._missed.inc(count)

    def trouble(self, trouble: Trouble) -> None:
        """Count a read that failed."""
        self._troubles.labels(trouble.value).inc()

    def behind(self, shard: str, lag_s: float) -> None:
        """Note how far behind a shard is; the lag of the feed is that of the worst."""
        self._behind_s[shard] = lag_s
        self._tell()

    def over(self, shard: str) -> None:
        """Forget a shard that is read no more."""
        self._behind_s.pop(shard, None)
        self._tell()

    def _tell(self) -> None:
        self._shards.set(len(self._behind_s))
        self._lag.set(max(self._behind_s.values(), default=0.0))
