"""Operations on series: what metrics there are, how unusual they are, and how far the time of a device is."""

from __future__ import annotations

from services.analytics.resources import (
    AnomaliesQuery,
    AnomalyOfDevice,
    MetricOf,
    SeriesOf,
    Watermark,
    anomaly_of_device,
    series_of_device,
)
from services.analytics.service import AnalyticsService
from services.analytics.store.reader import FIRST, LATEST
from services.analytics.watermark import watermark_ms
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, cursor_of, key_of, page_of


def register(operations: Operations[AnalyticsService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/devices/{device}/series",
        of_device,
        name="list-device-series",
        summary="List the series of a device with their last number and its anomaly score",
        tag="series",
        scope="analytics:read",
        query=PageQuery,
        answers={200: Page[SeriesOf]},
    )
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/metrics",
        metrics,
        name="list-metrics",
        summary="List the metrics that devices of a tenant send",
        tag="series",
        scope="analytics:read",
        query=PageQuery,
        answers={200: Page[MetricOf]},
    )
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/anomalies",
        anomalies,
        name="list-anomalies",
        summary="List the last anomaly of each series that had one, the newest first",
        tag="series",
        scope="analytics:read",
        query=AnomaliesQuery,
        answers={200: Page[AnomalyOfDevice]},
    )
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/devices/{device}/watermark",
        watermark,
        name="get-device-watermark",
        summary="Show until when the windows of a device are final, and what of it was dropped",
        tag="series",
        scope="analytics:read",
        answers={200: Watermark},
    )


async def of_device(service: AnalyticsService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-device-series."""
    limit, after = asked.query.limit, key_of(asked.query.cursor, tuple[str, str]) or FIRST
    found = service.reader.series_page(asked.path["tenant"], asked.path["device"], after, limit + 1)
    shown = [series_of_device(series) for series in found]
    return Reply(page_of(shown, limit, lambda series: (series.metric, series.stream)))


async def metrics(service: AnalyticsService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-metrics."""
    limit, after = asked.query.limit, key_of(asked.query.cursor, tuple[str, str]) or FIRST
    shown = [
        MetricOf(series.key.metric, series.key.stream, series.last_ms)
        for series in service.reader.metrics_page(asked.path["tenant"], after, limit + 1)
    ]
    return Reply(page_of(shown, limit, lambda metric: (metric.metric, metric.stream)))


async def anomalies(service: AnalyticsService, asked: Asked[AnomaliesQuery, NoBody]) -> Reply:
    """Answer list-anomalies."""
    query = asked.query
    found = service.reader.anomalies_page(
        asked.path["tenant"],
        since_ms=query.from_,
        sigma_min=query.sigma_min,
        before=_before(query.cursor),
        limit=query.limit + 1,
    )
    kept = found[: query.limit]
    last = kept[-1] if len(found) > len(kept) else None
    next_ = cursor_of((last.anomaly.at_ms, last.number)) if last is not None and last.anomaly else ""
    return Reply(Page([anomaly_of_device(series) for series in kept], next_))


def _before(cursor: str) -> tuple[int, int]:
    """Return the key that a cursor leads to, in what the store takes for a number."""
    latest_ms, number = key_of(cursor, tuple[int, int]) or LATEST
    return min(latest_ms, LATEST[0]), min(number, LATEST[0])


async def watermark(service: AnalyticsService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-device-watermark."""
    device = service.reader.device(asked.path["tenant"], asked.path["device"])
    if device is None:
        return Reply(Watermark(latest_ts=None, final_until=None, dropped={}))
    final_ms = watermark_ms(device.high_ms, service.rules.tolerance)
    return Reply(
        Watermark(
            latest_ts=device.high_ms or None,
            final_until=final_ms if device.high_ms else None,
            dropped=device.dropped,
        )
    )
