"""Operations on devices."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from msgspec import UNSET

from routing.tenancy.identity import Kind
from routing.tenancy.registry import Status
from services.device.api.versions import (
    CHANGED,
    IF_MATCH,
    IF_NONE_MATCH,
    is_known,
    refuse_unless_matches,
)
from services.device.issuer import Holder
from services.device.resources import Device, DevicePatch, NewDevice, refuse_large_attributes
from services.device.service import DeviceService
from services.device.shadow import merge_patch
from services.web.operations import JSON, MERGE_PATCH, Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.refusal import Refused, unprocessable

ALL: Final = "/v1/tenants/{tenant}/devices"
ONE: Final = "/v1/tenants/{tenant}/devices/{device}"
NONE: Final = {404: "There is no such device."}


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        ALL,
        find_all,
        name="list-devices",
        summary="List the devices of a tenant by name",
        tag="devices",
        scope="devices:read",
        query=PageQuery,
        answers={200: Page[Device]},
        refusals={404: "There is no such tenant."},
    )
    operations.add(
        "POST",
        ALL,
        add,
        name="add-device",
        summary="Add a device",
        tag="devices",
        scope="devices:write",
        body=NewDevice,
        answers={201: Device},
        refusals={
            404: "There is no such tenant.",
            409: "There is one of this name, a group does not exist, or the tenant has as many as it may.",
        },
    )
    operations.add(
        "GET",
        ONE,
        find,
        name="get-device",
        summary="Show a device",
        tag="devices",
        scope="devices:read",
        answers={200: Device, 304: None},
        refusals=NONE,
        headers=IF_NONE_MATCH,
    )
    operations.add(
        "PATCH",
        ONE,
        change,
        name="change-device",
        summary="Change the attributes of a device (JSON merge patch)",
        tag="devices",
        scope="devices:write",
        body=DevicePatch,
        body_types=(MERGE_PATCH, JSON),
        answers={200: Device},
        refusals={**NONE, **CHANGED},
        headers=IF_MATCH,
    )
    operations.add(
        "DELETE",
        ONE,
        remove,
        name="remove-device",
        summary="Remove a device; its certificates are revoked and its keys end",
        tag="devices",
        scope="devices:write",
        answers={204: None},
        refusals={**NONE, 503: "The issuer does not revoke now; try again."},
    )
    for name, handler, text in (
        ("suspend", suspend, "Suspend a device: it is put out and refused within a second"),
        ("resume", resume, "Serve a suspended device again"),
    ):
        operations.add(
            "POST",
            f"{ONE}/{name}",
            handler,
            name=f"{name}-device",
            summary=text,
            tag="devices",
            scope="devices:write",
            answers={200: Device},
            refusals=NONE,
        )


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-devices."""
    tenant = asked.path["tenant"]
    service.fleet.refuse_unless_tenant(tenant)
    found = service.fleet.page(tenant, key_of(asked.query.cursor, str) or "", asked.query.limit + 1)
    return Reply(page_of(found, asked.query.limit, lambda device: device.device))


async def add(service: DeviceService, asked: Asked[NoQuery, NewDevice]) -> Reply:
    """Answer add-device."""
    tenant, new, fleet = asked.path["tenant"], asked.body, service.fleet
    if new.device in {".", ".."}:
        raise unprocessable("device: not a name")
    refuse_large_attributes(new.attributes)
    fleet.refuse_unless_tenant(tenant)
    fleet.refuse_unknown_groups(tenant, new.groups)
    if fleet.is_registered(tenant, new.device):
        raise Refused(409, "exists", f"there is a device {new.device}")
    fleet.refuse_too_many(tenant)
    fleet.register(tenant, new.device, new.groups, new.attributes)
    service.journal.did(asked.caller, tenant, "device.add", device=new.device)
    device = fleet.find(tenant, new.device)
    return Reply(
        device,
        201,
        {"Location": f"/v1/tenants/{tenant}/devices/{new.device}", "ETag": _tag(device)},
    )


async def find(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-device."""
    device = service.fleet.find(asked.path["tenant"], asked.path["device"])
    tag = _tag(device)
    if is_known(asked.request, tag):
        return Reply(None, 304, {"ETag": tag})
    return Reply(device, 200, {"ETag": tag})


async def change(service: DeviceService, asked: Asked[NoQuery, DevicePatch]) -> Reply:
    """Answer change-device."""
    tenant, name, patch = asked.path["tenant"], asked.path["device"], asked.body.attributes
    device = service.fleet.find(tenant, name)
    refuse_unless_matches(asked.request, _tag(device))
    if patch is not UNSET:
        attributes = {} if patch is None else merge_patch(device.attributes, patch)
        refuse_large_attributes(attributes)
        service.fleet.put_attributes(tenant, name, attributes)
        service.journal.did(asked.caller, tenant, "device.change", device=name)
    device = service.fleet.find(tenant, name)
    return Reply(device, 200, {"ETag": _tag(device)})


async def remove(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer remove-device."""
    tenant, name = asked.path["tenant"], asked.path["device"]
    service.fleet.row(tenant, name)
    await service.certification.revoke_all(Holder(tenant=tenant, kind=Kind.DEVICE, name=name))
    service.fleet.remove(tenant, name)
    service.journal.did(asked.caller, tenant, "device.remove", device=name)
    return Reply(None, 204)


async def suspend(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer suspend-device."""
    return _with_status(service, asked, Status.SUSPENDED, "device.suspend")


async def resume(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer resume-device."""
    return _with_status(service, asked, Status.ACTIVE, "device.resume")


def _with_status(service: DeviceService, asked: Asked[NoQuery, NoBody], status: Status, action: str) -> Reply:
    tenant, name = asked.path["tenant"], asked.path["device"]
    service.fleet.set_status(tenant, name, status)
    service.journal.did(asked.caller, tenant, action, device=name)
    return Reply(service.fleet.find(tenant, name))


def _tag(device: Device) -> str:
    """Return the ETag of all that is shown: a device that is suspended is another version too."""
    return f'"{hashlib.sha256(msgspec.json.encode(device, order="sorted")).hexdigest()[:16]}"'
