"""Operations on roll-ups: of a device, and of all devices of a tenant."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from services.analytics.resources import (
    DeviceWindow,
    ErasedRollups,
    FleetWindow,
    RollupsQuery,
    device_window,
    fleet_window,
)
from services.analytics.rollup import Rollup
from services.analytics.series import EVERY_DEVICE
from services.analytics.service import AnalyticsService
from services.analytics.watermark import watermark_ms
from services.analytics.windows import Window
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, key_of, page_of
from services.web.refusal import not_found, unprocessable

WindowT = TypeVar("WindowT", bound=FleetWindow)
END_S: Final = 2**40
NONE: Final = {404: "No such metric has come in."}


def register(operations: Operations[AnalyticsService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/devices/{device}/rollups",
        of_device,
        name="list-device-rollups",
        summary="List the roll-ups of a metric of a device, the oldest first",
        description="Windows without a value are left out.",
        tag="rollups",
        scope="analytics:read",
        query=RollupsQuery,
        answers={200: Page[DeviceWindow]},
        refusals=NONE,
    )
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/rollups",
        of_fleet,
        name="list-tenant-rollups",
        summary="List the roll-ups of a metric of all devices of a tenant, the oldest first",
        description="Quantiles are of all numbers of all devices: their sketches are merged.",
        tag="rollups",
        scope="analytics:read",
        query=RollupsQuery,
        answers={200: Page[FleetWindow]},
        refusals=NONE,
    )
    operations.add(
        "DELETE",
        "/v1/tenants/{tenant}/devices/{device}/rollups",
        forget,
        name="erase-device-rollups",
        summary="Erase roll-ups, series and anomalies of a device",
        description="What it has added to the roll-ups of all devices stays.",
        tag="rollups",
        scope="privacy:write",
        answers={200: ErasedRollups},
    )


async def of_device(service: AnalyticsService, asked: Asked[RollupsQuery, NoBody]) -> Reply:
    """Answer list-device-rollups."""
    return Reply(await asyncio.to_thread(_of_device, service, asked))


async def of_fleet(service: AnalyticsService, asked: Asked[RollupsQuery, NoBody]) -> Reply:
    """Answer list-tenant-rollups."""
    return Reply(await asyncio.to_thread(_of_fleet, service, asked))


async def forget(service: AnalyticsService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer erase-device-rollups."""
    return Reply(ErasedRollups(await service.consumer.forget(asked.path["tenant"], asked.path["device"])))


def _of_device(service: AnalyticsService, asked: Asked[RollupsQuery, NoBody]) -> Page[DeviceWindow]:
    tenant, name, query = asked.path["tenant"], asked.path["device"], asked.query
    device = service.reader.device(tenant, name)  # before its windows: what it says is final was final then
    final_ms = watermark_ms(device.high_ms, service.rules.tolerance) if device is not None else 0
    window, found = _windows(service, tenant, name, query)
    shown = [
        device_window(start_s, rollup, window, query.quantiles, final_ms=final_ms)
        for start_s, rollup in found
    ]
    return _page(shown, query.limit)


def _of_fleet(service: AnalyticsService, asked: Asked[RollupsQuery, NoBody]) -> Page[FleetWindow]:
    query = asked.query
    window, found = _windows(service, asked.path["tenant"], EVERY_DEVICE, query)
    return _page(
        [fleet_window(start_s, rollup, window, query.quantiles) for start_s, rollup in found], query.limit
    )


def _windows(
    service: AnalyticsService, tenant: str, device: str, query: RollupsQuery
) -> tuple[Window, list[tuple[int, Rollup]]]:
    """Return the size that is asked for, and one window more than the page has."""
    rules = service.rules
    window = rules.window(query.window) if query.window else rules.windows[0]
    if window is None:
        raise unprocessable(f"window: one of {', '.join(each.name for each in rules.windows)}")
    if query.to < query.from_:
        raise unprocessable("to: before from")
    from_s, to_s = window.start_of(query.from_), -(-query.to // 1000)
    after_s = key_of(query.cursor, int)
    if after_s is not None:
        from_s = min(max(from_s, after_s + 1), END_S)
    series = service.reader.series_of(tenant, device, query.metric, query.stream)
    if not series:
        raise not_found(f"metric {query.metric}")
    return window, service.reader.windows(series, window.size_s, from_s, to_s, query.limit + 1)


def _page(shown: list[WindowT], limit: int) -> Page[WindowT]:
    return page_of(shown, limit, lambda window: window.start // 1000)
