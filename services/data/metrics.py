"""What is counted of the data service. Labels are from closed sets."""

from __future__ import annotations

import enum

from prometheus_client import CollectorRegistry, Counter, Gauge


class ReadOutcome(enum.Enum):
    """What became of a read of the warehouse."""

    OK = "ok"
    REFUSED = "refused"
    LATE = "late"
    FAILED = "failed"


class DataMetrics:
    """The counters, in the registry of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reads = Counter(
            "headworks_data_reads", "Reads of the warehouse", ["outcome"], registry=registry
        )
        self._write_failures = Counter(
            "headworks_data_write_failures", "Batches to be written again", registry=registry
        )
        self._unstorable = Counter(
            "headworks_data_unstorable", "Records that the warehouse cannot hold, dropped", registry=registry
        )
        self._pruned = Counter(
            "headworks_data_pruned", "Records past their retention, or for room", registry=registry
        )
        self.bytes = Gauge("headworks_data_bytes", "What the warehouse takes up on disk", registry=registry)
        self.tails = Gauge("headworks_data_tails", "Live streams that are being read", registry=registry)

    def read(self, outcome: ReadOutcome) -> None:
        """Count a read."""
        self._reads.labels(outcome.value).inc()

    def write_failed(self) -> None:
        """Count a batch that could not be written now."""
        self._write_failures.inc()

    def unstorable(self, count: int) -> None:
        """Count records that cannot be written ever."""
        self._unstorable.inc(count)

    def pruned(self, count: int) -> None:
        """Count records that were deleted for their age, or to make room."""
        self._pruned.inc(count)
