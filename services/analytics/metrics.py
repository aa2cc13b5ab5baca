"""What is counted of the values of telemetry: folded or dropped, by why. No label names a tenant or device.

The counts are those of the file, so they go on over a restart, and add up: of every record that was taken
once, each value is folded or dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.analytics.store.writer import Sizes, Stored
from services.analytics.watermark import Dropped


class AnalyticsMetrics(Collector):
    """Shows the totals of all batches; `taken` adds one to them."""

    def __init__(self, registry: CollectorRegistry, totals: Stored) -> None:
        self._totals = totals
        self._sizes = Sizes()
        self._troubles = 0
        registry.register(self)

    def taken(self, stored: Stored) -> None:
        """Count what a batch has come to."""
        before = self._totals
        dropped = dict(before.dropped)
        for why, count in stored.dropped.items():
            dropped[why] = dropped.get(why, 0) + count
        self._totals = Stored(
            records=before.records + stored.records,
            duplicates=before.duplicates + stored.duplicates,
            folded=before.folded + stored.folded,
            anomalies=before.anomalies + stored.anomalies,
            dropped=dropped,
        )

    def measured(self, sizes: Sizes) -> None:
        """Note how much there is."""
        self._sizes = sizes

    def trouble(self) -> None:
        """Count a transaction that is to be tried again."""
        self._troubles += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        totals = self._totals
        for name, text, value in (
            ("records", "Records taken, duplicates apart", totals.records),
            ("folded", "Values in roll-ups", totals.folded),
            ("anomalies", "Numbers that were an anomaly", totals.anomalies),
            ("store_troubles", "Transactions to be tried again", self._troubles),
        ):
            yield CounterMetricFamily(f"headworks_analytics_{name}", text, value=value)
        dropped = CounterMetricFamily(
            "headworks_analytics_dropped", "Values in no roll-up, by why", labels=["reason"]
        )
        for reason in Dropped:
            dropped.add_metric([reason.value], totals.dropped.get(reason.value, 0))
        yield dropped
        for name, text, value in (
            ("devices", "Devices of all tenants", self._sizes.devices),
            ("series", "Series of all devices and tenants", self._sizes.series),
            ("bytes", "Bytes of the file that are in use", self._sizes.bytes),
        ):
            yield GaugeMetricFamily(f"headworks_analytics_{name}", text, value=value)
