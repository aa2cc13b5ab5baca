"""Folds records into the roll-ups of their series: what a batch comes to, before it is stored.

- A tenant has at most `devices_max` devices and `metrics_max` metrics, a device `series_max` series. What is
  over a limit, or of a time that cannot be taken, is dropped and counted by why: values = folded + dropped.
- A number out of the order of its series' times is rolled up, and not scored. Nor is a boolean: of what is
  true once in fifty times, each time is seven deviations off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import msgspec

from protocols.telemetry import Telemetry
from services.analytics.rollup import MAGNITUDE_MAX
from services.analytics.series import EVERY_DEVICE, Anomaly, Device, Key, Series
from services.analytics.watermark import Dropped, Tolerance, untimely
from services.analytics.windows import Window


class FoldLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a tenant may have, and what counts as unusual (`services.analytics.baseline`)."""

    devices_max: int
    series_max: int
    metrics_max: int
    memory: int
    warm_up: int
    anomaly_sigma: float


class Known(Protocol):
    """What is stored."""

    def device(self, tenant: str, name: str) -> Device | None:
        """Return a device, or None."""

    def series(self, key: Key) -> Series | None:
        """Return a series, or None."""

    def device_count(self, tenant: str) -> int:
        """Return how many devices a tenant has."""

    def series_count(self, tenant: str, device: str) -> int:
        """Return how many series a device has, or with `EVERY_DEVICE` how many metrics its tenant has."""


class _Found(msgspec.Struct):
    """A device of the batch, and its series by stream and metric with that of all devices."""

    device: Device
    series: dict[tuple[str, str], tuple[Series, Series] | Dropped] = msgspec.field(default_factory=dict)


class Fold:
    """One batch: takes records one after the other; what changed is in `devices` and `series`."""

    def __init__(
        self, known: Known, limits: FoldLimits, windows: Sequence[Window], tolerance: Tolerance
    ) -> None:
        self._known = known
        self._limits = limits
        self._finest = windows[0]
        self._coarsest = windows[-1]
        self._tolerance = tolerance
        self._counts: dict[tuple[str, str | None], int] = {}
        self._found: dict[tuple[str, str], _Found | None] = {}
        self._of_tenants: dict[Key, Series] = {}
        self.folded = 0
        self.anomalies = 0
        self.dropped: Counter[Dropped] = Counter()

    @property
    def devices(self) -> list[Device]:
        """The devices of the batch."""
        return [found.device for found in self._found.values() if found is not None]

    @property
    def series(self) -> list[Series]:
        """The series of the batch, those of all devices of a tenant among them."""
        pairs = [
            pair for found in self._found.values() if found is not None for pair in found.series.values()
        ]
        own = [pair[0] for pair in pairs if not isinstance(pair, Dropped)]
        return own + list(self._of_tenants.values())

    def drop(self, reason: Dropped, device: Device | None, values: int = 1) -> None:
        """Count values that are in no roll-up."""
        self.dropped[reason] += values
        if device is not None:
            device.dropped[reason.value] = device.dropped.get(reason.value, 0) + values

    def take(self, tenant: str, name: str, stream: str, received_ms: int, telemetry: Telemetry) -> None:
        """Fold what a device has measured at one time.

        Hot: guarded by bench/test_rollups.py::test_fold_a_batch.
        """
        ts_ms, metrics = telemetry.ts, telemetry.metrics
        found = self._device(tenant, name)
        if found is None:
            self.drop(Dropped.TOO_MANY_DEVICES, None, len(metrics))
            return
        device = found.device
        reason = untimely(
            ts_ms,
            received_ms,
            device.high_ms,
            tolerance=self._tolerance,
            finest=self._finest,
            coarsest=self._coarsest,
        )
        if reason is not None:
            self.drop(reason, device, len(metrics))
            return
        device.high_ms = max(device.high_ms, ts_ms)
        start_s = self._finest.start_of(ts_ms)
        for metric, value in metrics.items():
            pair = found.series.get((stream, metric))
            if pair is None:
                pair = found.series[stream, metric] = self._pair(Key(tenant, name, stream, metric))
            if isinstance(pair, Dropped):
                self.drop(pair, device)
                continue
            own, every = pair
            if isinstance(value, str):
                own.window(start_s).texts += 1
                every.window(start_s).texts += 1
            elif -MAGNITUDE_MAX <= value <= MAGNITUDE_MAX:
                number = float(value)
                own.window(start_s).add(ts_ms, number)
                every.window(start_s).add(ts_ms, number)
                if ts_ms >= own.last_ms:
                    own.last = number
                    if not isinstance(value, bool):
                        self._score(own, ts_ms, number)
            else:
                self.drop(Dropped.OUT_OF_RANGE, device)
                continue
            self.folded += 1
            own.last_ms = max(own.last_ms, ts_ms)
            every.last_ms = max(every.last_ms, ts_ms)

    def _score(self, series: Series, ts_ms: int, number: float) -> None:
        limits = self._limits
        sigma = series.baseline.take(number, memory=limits.memory, warm_up=limits.warm_up)
        series.sigma = sigma
        if sigma is not None and abs(sigma) >= limits.anomaly_sigma:
            series.anomaly = Anomaly(ts_ms, number, sigma)
            series.anomalies += 1
            self.anomalies += 1

    def _device(self, tenant: str, name: str) -> _Found | None:
        """Return a device, which may be new, or None when there are too many."""
        at = (tenant, name)
        if at not in self._found:
            device = self._known.device(tenant, name)
            if device is None and self._has_room(tenant, None, self._limits.devices_max):
                device = Device(tenant=tenant, name=name)
                self._counts[tenant, None] += 1
            self._found[at] = None if device is None else _Found(device)
        return self._found[at]

    def _pair(self, key: Key) -> tuple[Series, Series] | Dropped:
        """Return a series with that of all devices, of which both may be new, or why there is none."""
        of_tenant = msgspec.structs.replace(key, device=EVERY_DEVICE)
        every = self._of_tenants.get(of_tenant) or self._known.series(of_tenant)
        own = self._known.series(key)
        if own is None and not self._has_room(key.tenant, key.device, self._limits.series_max):
            return Dropped.TOO_MANY_SERIES
        if every is None and not self._has_room(key.tenant, EVERY_DEVICE, self._limits.metrics_max):
            return Dropped.TOO_MANY_METRICS
        if own is None:
            own = Series(key=key)
            self._counts[key.tenant, key.device] += 1
        if every is None:
            every = Series(key=of_tenant)
            self._counts[key.tenant, EVERY_DEVICE] += 1
        self._of_tenants[of_tenant] = every
        return own, every

    def _has_room(self, tenant: str, device: str | None, count_max: int) -> bool:
        """Return whether there may be one more; what is stored is counted once a batch."""
        where = (tenant, device)
        if where not in self._counts:
            known = self._known
            self._counts[where] = (
                known.device_count(tenant) if device is None else known.series_count(tenant, device)
            )
        return self._counts[where] < count_max
