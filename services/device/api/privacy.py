"""Operations for data subjects, and the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from routing.tenancy.identity import Kind
from routing.tenancy.registry import Status
from runtime import clock
from services.device.api import certificates, shadows
from services.device.issuer import Holder
from services.device.journal import Noted
from services.device.privacy import Piece, as_lines, as_object
from services.device.resources import Erased, at
from services.device.service import DeviceService
from services.web.operations import JSON, NAME, Asked, Content, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of

NDJSON: Final = "application/x-ndjson"
PAGE: Final = 200
ONE: Final = "/v1/tenants/{tenant}/devices/{device}"


class AuditQuery(PageQuery, frozen=True, kw_only=True):
    """Which entries of the audit log are asked for."""

    device: Annotated[str, Meta(pattern=f"^({NAME})?$", description="Only about this device.")] = ""


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        f"{ONE}/export",
        export,
        name="export-device",
        summary="Everything that is kept about a device, as a stream",
        description="`complete` comes last, and is false when something could not be read any more.",
        tag="privacy",
        scope="privacy:write",
        answers={200: Content("Everything about the device.", {JSON: dict, NDJSON: None})},
        refusals={404: "There is no such device."},
    )
    operations.add(
        "POST",
        f"{ONE}/erase",
        erase,
        name="erase-device",
        summary="Erase a device: all that is known of it, its certificates and its keys",
        description="The audit log keeps a pseudonym, from which nothing leads to the device any more. "
        "Telemetry and roll-ups are erased where they are kept: `DELETE …/telemetry`, `DELETE …/rollups`.",
        tag="privacy",
        scope="privacy:write",
        answers={200: Erased},
        refusals={404: "There is no such device.", 503: "The issuer does not revoke now; try again."},
    )
    operations.add(
        "GET",
        "/v1/tenants/{tenant}/audit",
        audit,
        name="list-audit",
        summary="Who did what, the newest first",
        tag="audit",
        scope="audit:read",
        query=AuditQuery,
        answers={200: Page[Noted]},
    )


async def export(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> web.StreamResponse:
    """Answer export-device."""
    tenant, device = asked.path["tenant"], asked.path["device"]
    service.fleet.row(tenant, device)
    service.journal.did(asked.caller, tenant, "device.export", device=device)
    pieces = _pieces(service, tenant, device)
    in_lines = NDJSON in asked.request.headers.get("Accept", "")
    response = web.StreamResponse(headers={"Content-Type": NDJSON if in_lines else JSON})
    await response.prepare(asked.request)
    async for part in as_lines(pieces) if in_lines else as_object(pieces):
        await response.write(part)
    await response.write_eof()
    return response


async def _pieces(service: DeviceService, tenant: str, device: str) -> AsyncIterator[Piece]:
    encode = msgspec.json.encode
    yield "device", encode(service.fleet.find(tenant, device))
    yield "shadow", encode(shadows.described(service.shadows.find(tenant, device)))
    after, now_s = "", clock.unix_s()
    while rows := service.certificates.page(tenant, Kind.DEVICE.value, device, after, PAGE):
        for row in rows:
            yield "certificates", encode(certificates.described(row, now_s))
        after = rows[-1].serial
    for key in service.registry.keys(tenant):
        if key.name == device:
            yield "keys", encode(key)
    before: int | None = None
    while entries := service.journal.page(tenant, before, PAGE, device):
        for entry in entries:
            yield "audit", encode(entry)
        before = entries[-1].number
    async for record in service.telemetry.records(tenant, device):
        yield "telemetry", record


async def erase(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer erase-device. What was begun and not ended can be asked for again."""
    tenant, device = asked.path["tenant"], asked.path["device"]
    service.fleet.set_status(tenant, device, Status.SUSPENDED)
    holder = Holder(tenant=tenant, kind=Kind.DEVICE, name=device)
    revoked = await service.certification.revoke_all(holder)
    keys = [key for key in service.registry.keys(tenant) if key.name == device and key.kind == "device"]
    service.certificates.remove(tenant, holder.kind.value, device)
    service.fleet.remove(tenant, device)
    pseudonym = service.fleet.forget_name(tenant, device)
    service.journal.did(asked.caller, tenant, "device.erase", subject=pseudonym)
    service.waiters.changed(tenant, device)
    return Reply(
        Erased(
            pseudonym=pseudonym,
            erased_at=at(clock.unix_s()),
            certificates_revoked=revoked,
            keys_revoked=sum(key.status == Status.ACTIVE.value for key in keys),
        )
    )


async def audit(service: DeviceService, asked: Asked[AuditQuery, NoBody]) -> Reply:
    """Answer list-audit."""
    before = key_of(asked.query.cursor, int)
    found = service.journal.page(asked.path["tenant"], before, asked.query.limit + 1, asked.query.device)
    return Reply(page_of(found, asked.query.limit, lambda entry: entry.number))
