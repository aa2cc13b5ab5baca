"""Version 1: the newest records of a device as they came, in one list. Deprecated: version 2 has more."""

from __future__ import annotations

from typing import Final

import msgspec

from services.data.resources import Records, RecordsQuery, Telemetry
from services.data.selection import newest_records
from services.data.service import DataService
from services.web.operations import Asked, NoBody, Operations, Reply

PATH: Final = "/v1/tenants/{tenant}/devices/{device}/telemetry"


def register(operations: Operations[DataService]) -> None:
    """Register it."""
    operations.add(
        "GET",
        PATH,
        find,
        name="list-telemetry-v1",
        summary="The newest records of a device, in order of arrival",
        description="As they came. Version 2 has values by metric and time, in pages, buckets and streams.",
        tag="telemetry",
        scope="telemetry:read",
        query=RecordsQuery,
        answers={200: Records},
        refusals={503: "Too many reads, or one that takes too long."},
    )


async def find(service: DataService, asked: Asked[RecordsQuery, NoBody]) -> Reply:
    """Answer list-telemetry-v1."""
    path, query = asked.path, asked.query
    rows = await service.reader.rows(
        newest_records(path["tenant"], path["device"], query.stream, query.since, query.limit)
    )
    items = [
        Telemetry(
            id=identity,
            stream=stream,
            received_at=received_at,
            payload=msgspec.Raw(payload.encode()) if payload.startswith("{") else payload,
        )
        for identity, stream, received_at, payload in reversed(rows)
    ]
    return Reply(Records(items))
