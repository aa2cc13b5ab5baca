"""What callers see: roll-ups, series, anomalies, watermarks. Times are Unix ms, as devices send them."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from protocols.telemetry import TS_MS_MAX
from services.analytics.baseline import score_of
from services.analytics.rollup import Rollup
from services.analytics.series import Series
from services.analytics.windows import SIZE, Window
from services.web.page import PageQuery

QUANTILES_MAX: Final = 8
Ms = Annotated[int, Meta(ge=0, le=TS_MS_MAX + 1)]
Metric = Annotated[str, Meta(min_length=1, max_length=128)]
Stream = Annotated[str, Meta(max_length=512, description="Only of this stream; of all when it is left out.")]
Quantile = Annotated[float, Meta(ge=0, le=1)]


class RollupsQuery(PageQuery, frozen=True, kw_only=True):
    """Which windows are asked for, the oldest first."""

    metric: Metric
    window: Annotated[
        str, Meta(pattern=f"^({SIZE})?$", description="A size of the settings, as in 5m; else the finest.")
    ] = ""
    stream: Stream = ""
    from_: Annotated[Ms, Meta(description="The first window is the one of this time (Unix ms).")] = (
        msgspec.field(default=0, name="from")
    )
    to: Annotated[Ms, Meta(description="No window begins at this time or later (Unix ms).")] = TS_MS_MAX + 1
    quantiles: Annotated[
        list[Quantile], Meta(max_length=QUANTILES_MAX, description="Which quantiles, from 0 to 1.")
    ] = msgspec.field(default_factory=lambda: [0.5, 0.9, 0.99], name="q")


class AnomaliesQuery(PageQuery, frozen=True, kw_only=True):
    """Which anomalies are asked for, the newest first."""

    from_: Annotated[Ms, Meta(description="Not before (Unix ms).")] = msgspec.field(default=0, name="from")
    sigma_min: Annotated[float, Meta(ge=0, description="At least so many deviations.")] = 0.0


class Reading(msgspec.Struct, frozen=True):
    """A number, and when it was measured."""

    ts: int
    value: float


class QuantileOf(msgspec.Struct, frozen=True):
    """The number that the part `q` of the numbers does not exceed, within 1 %."""

    q: float
    value: float


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the numbers of a window. The variance is of the numbers themselves (divided by n)."""

    min: float
    max: float
    sum: float
    mean: float
    variance: float
    quantiles: list[QuantileOf]


class FleetWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window of all devices of a tenant: `count` numbers, and `texts` that were counted only."""

    start: int
    end: int
    count: int
    texts: int
    statistics: Statistics | None


class DeviceWindow(FleetWindow, frozen=True, kw_only=True):
    """A window of one device. `rate_per_s` is the change from `first` to `last`.

    It is final when the watermark of the device has passed its end, and is not corrected any more.
    """

    final: bool
    first: Reading | None
    last: Reading | None
    rate_per_s: float | None


class MetricOf(msgspec.Struct, frozen=True):
    """A metric that devices of the tenant send, and when one last did."""

    metric: str
    stream: str
    last_ts: int


class AnomalyOf(msgspec.Struct, frozen=True, kw_only=True):
    """A number that was `sigma` deviations off what the series did; `score` is that from 0 to 1."""

    ts: int
    value: float
    sigma: float
    score: float


class SeriesOf(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of a stream of a device.

    `sigma` and `score` are of `last`: null until there were enough numbers to compare with. `anomaly` is the
    last of so many `anomalies`.
    """

    metric: str
    stream: str
    last_ts: int
    last: float | None
    sigma: float | None
    score: float | None
    anomalies: int
    anomaly: AnomalyOf | None


class AnomalyOfDevice(AnomalyOf, frozen=True, kw_only=True):
    """The last anomaly of a series."""

    device: str
    metric: str
    stream: str


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """How far the time of a device has come, null when nothing has. Windows before `final_until` are final.

    `dropped` are values that are in no roll-up, by why.
    """

    latest_ts: int | None
    final_until: int | None
    dropped: dict[str, int]


class ErasedRollups(msgspec.Struct, frozen=True):
    """How many roll-ups of a device are gone."""

    rollups: int


def statistics_of(rollup: Rollup, quantiles: list[float]) -> Statistics | None:
    """Return what callers see of the numbers of a roll-up, or None when there are none."""
    if not rollup.count:
        return None
    return Statistics(
        min=rollup.minimum,
        max=rollup.maximum,
        sum=rollup.total,
        mean=rollup.mean,
        variance=rollup.variance,
        quantiles=[
            QuantileOf(q, found) for q, found in zip(quantiles, rollup.quantiles(quantiles), strict=True)
        ],
    )


def fleet_window(start_s: int, rollup: Rollup, window: Window, quantiles: list[float]) -> FleetWindow:
    """Return a window of all devices."""
    return FleetWindow(
        start=start_s * 1000,
        end=(start_s + window.size_s) * 1000,
        count=rollup.count,
        texts=rollup.texts,
        statistics=statistics_of(rollup, quantiles),
    )


def device_window(
    start_s: int, rollup: Rollup, window: Window, quantiles: list[float], *, final_ms: int
) -> DeviceWindow:
    """Return a window of a device whose windows are final until `final_ms`."""
    end_ms = (start_s + window.size_s) * 1000
    return DeviceWindow(
        start=start_s * 1000,
        end=end_ms,
        final=end_ms <= final_ms,
        count=rollup.count,
        texts=rollup.texts,
        statistics=statistics_of(rollup, quantiles),
        first=Reading(rollup.first_ms, rollup.first) if rollup.count else None,
        last=Reading(rollup.last_ms, rollup.last) if rollup.count else None,
        rate_per_s=rollup.rate_per_s,
    )


def series_of_device(series: Series) -> SeriesOf:
    """Return what callers see of a series."""
    found = series.anomaly
    return SeriesOf(
        metric=series.key.metric,
        stream=series.key.stream,
        last_ts=series.last_ms,
        last=series.last,
        sigma=series.sigma,
        score=None if series.sigma is None else score_of(series.sigma),
        anomalies=series.anomalies,
        anomaly=None
        if found is None
        else AnomalyOf(ts=found.at_ms, value=found.value, sigma=found.sigma, score=score_of(found.sigma)),
    )


def anomaly_of_device(series: Series) -> AnomalyOfDevice:
    """Return the last anomaly of a series that has one."""
    found = series.anomaly
    assert found is not None
    return AnomalyOfDevice(
        ts=found.at_ms,
        value=found.value,
        sigma=found.sigma,
        score=score_of(found.sigma),
        device=series.key.device,
        metric=series.key.metric,
        stream=series.key.stream,
    )
