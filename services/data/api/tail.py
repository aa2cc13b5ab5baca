"""The live stream of a tenant, for the API gateway's `/v1/live`."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from services.data.formats import NDJSON
from services.data.resources import TailQuery
from services.data.service import DataService
from services.data.tails import UNREAD_S
from services.web.operations import Asked, Content, NoBody, Operations
from services.web.refusal import Refused

PATH: Final = "/tail"


def register(operations: Operations[DataService]) -> None:
    """Register it."""
    operations.add(
        "GET",
        PATH,
        follow,
        name="tail",
        summary="The records of a tenant as they come, for ever",
        description="For the API gateway. An empty line comes when there is nothing else to say.",
        tag="live",
        scope="telemetry:read",
        query=TailQuery,
        answers={200: Content("A record a line.", {NDJSON: None})},
        refusals={503: "Too many streams are open."},
    )


async def follow(service: DataService, asked: Asked[TailQuery, NoBody]) -> web.StreamResponse:
    """Answer tail; it ends when the process does, or its reader takes nothing of it."""
    tenant, request = asked.query.tenant, asked.request
    if not asked.caller.may_act_for(tenant) or asked.caller.device:
        raise Refused(403, "foreign-tenant", "the caller belongs to another tenant")
    tails = service.tails
    with tails.admitted():
        seq = await tails.start_of(tenant, asked.query.after)
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(_write(service, response, tenant, seq))
                ending = tasks.create_task(service.draining.wait())
                await asyncio.wait([writing, ending], return_when=asyncio.FIRST_COMPLETED)
                writing.cancel()
                ending.cancel()
        except* (TimeoutError, Refused):
            if request.transport is not None:
                request.transport.abort()
        except* ConnectionError:
            pass
    return response


async def _write(service: DataService, response: web.StreamResponse, tenant: str, seq: int) -> None:
    await response.write(b"\n")
    async for chunk in service.tails.chunks(tenant, seq):
        async with asyncio.timeout(UNREAD_S):
            await response.write(chunk)
