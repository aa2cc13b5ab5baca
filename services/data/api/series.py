"""The series of a device: which metrics it sends, their newest values, and an end of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any, Final

from services.data.resources import Erased, Latest, Metric, value_of
from services.data.selection import latest
from services.data.service import DataService
from services.data.warehouse import WarehouseError
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.refusal import Refused

ONE: Final = "/v2/tenants/{tenant}/devices/{device}"
REFUSALS: Final = {503: "Too many reads, or one that takes too long."}
SINK_DEADLINE_S: Final = 10.0


def register(operations: Operations[DataService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        f"{ONE}/latest",
        find_latest,
        name="list-latest",
        summary="The newest value of each metric of a device",
        tag="telemetry",
        scope="telemetry:read",
        query=PageQuery,
        answers={200: Page[Latest]},
        refusals=REFUSALS,
    )
    operations.add(
        "GET",
        f"{ONE}/metrics",
        find_metrics,
        name="list-device-metrics",
        summary="The metrics that a device sends",
        tag="telemetry",
        scope="telemetry:read",
        query=PageQuery,
        answers={200: Page[Metric]},
        refusals=REFUSALS,
    )
    operations.add(
        "DELETE",
        f"{ONE}/telemetry",
        erase,
        name="erase-telemetry",
        summary="Erase all telemetry of a device",
        description="Suspend the device before: what it sends afterwards, or is under way, is kept.",
        tag="privacy",
        scope="privacy:write",
        answers={200: Erased},
        refusals={503: "It cannot be deleted now; try again."},
    )


async def _page(service: DataService, asked: Asked[PageQuery, NoBody]) -> list[tuple[Any, ...]]:
    path, query = asked.path, asked.query
    after = key_of(query.cursor, tuple[str, str])
    return await service.reader.rows(latest(path["tenant"], path["device"], after, query.limit + 1))


async def find_latest(service: DataService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-latest."""
    found = [
        Latest(row[0], row[1], row[2], value_of(*row[3:6]), row[6]) for row in await _page(service, asked)
    ]
    return Reply(page_of(found, asked.query.limit, lambda each: (each.stream, each.metric)))


async def find_metrics(service: DataService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-metrics."""
    found = [
        Metric(
            row[0],
            row[1],
            "number" if row[3] is not None else "boolean" if row[4] is not None else "text",
            row[2],
        )
        for row in await _page(service, asked)
    ]
    return Reply(page_of(found, asked.query.limit, lambda each: (each.stream, each.metric)))


async def erase(service: DataService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer erase-telemetry: in the sink first, so that nothing of it can come again."""
    tenant, device = asked.path["tenant"], asked.path["device"]
    try:
        if service.sink is not None:
            await asyncio.to_thread(erase_in_sink, service.sink, tenant, device)
        return Reply(Erased(await service.consumer.erase(tenant, device)))
    except (WarehouseError, sqlite3.Error) as error:
        raise Refused(503, "unavailable", "it cannot be deleted now", retry_after_s=1) from error


def erase_in_sink(path: Path, tenant: str, device: str) -> None:
    """Delete the records of a device from the file of the sink `local`; raises `sqlite3.Error`.

    The newest record of all is blanked and not deleted, because its rowid must not be given to another.
    """
    if not path.exists():
        return
    with contextlib.closing(
        sqlite3.connect(path, timeout=SINK_DEADLINE_S, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("BEGIN IMMEDIATE")
        newest = "(SELECT max(rowid) FROM telemetry)"
        connection.execute(
            f"DELETE FROM telemetry WHERE tenant = ? AND device = ? AND rowid < {newest}", (tenant, device)
        )
        connection.execute(
            "UPDATE telemetry SET device = '', stream = '', payload = '' "
            f"WHERE tenant = ? AND device = ? AND rowid = {newest}",
            (tenant, device),
        )
        connection.execute("COMMIT")
