"""Operations on groups of devices."""

from __future__ import annotations

from typing import Final

from runtime import clock
from services.device.resources import Group, Member, NewGroup, at
from services.device.service import DeviceService
from services.device.store.groups import GroupRow
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.refusal import Refused, not_found, unprocessable

ALL: Final = "/v1/tenants/{tenant}/groups"
ONE: Final = "/v1/tenants/{tenant}/groups/{group}"
MEMBERS: Final = "/v1/tenants/{tenant}/groups/{group}/devices"
MEMBER: Final = "/v1/tenants/{tenant}/groups/{group}/devices/{device}"
NONE: Final = {404: "There is no such group, or no such device."}


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        ALL,
        find_all,
        name="list-groups",
        summary="List groups by name",
        tag="groups",
        scope="groups:read",
        query=PageQuery,
        answers={200: Page[Group]},
        refusals={404: "There is no such tenant."},
    )
    operations.add(
        "POST",
        ALL,
        add,
        name="add-group",
        summary="Make a group",
        tag="groups",
        scope="groups:write",
        body=NewGroup,
        answers={201: Group},
        refusals={404: "There is no such tenant.", 409: "It is there already, or there are too many."},
    )
    operations.add(
        "GET",
        ONE,
        find,
        name="get-group",
        summary="Show a group",
        tag="groups",
        scope="groups:read",
        answers={200: Group},
        refusals=NONE,
    )
    operations.add(
        "DELETE",
        ONE,
        remove,
        name="remove-group",
        summary="Remove a group; its devices stay",
        tag="groups",
        scope="groups:write",
        answers={204: None},
        refusals=NONE,
    )
    operations.add(
        "GET",
        MEMBERS,
        members,
        name="list-group-devices",
        summary="List the devices of a group by name",
        tag="groups",
        scope="groups:read",
        query=PageQuery,
        answers={200: Page[Member]},
        refusals=NONE,
    )
    operations.add(
        "POST",
        MEMBER,
        join,
        name="add-group-device",
        summary="Put a device into a group",
        tag="groups",
        scope="groups:write",
        answers={204: None},
        refusals=NONE,
    )
    operations.add(
        "DELETE",
        MEMBER,
        leave,
        name="remove-group-device",
        summary="Take a device out of a group",
        tag="groups",
        scope="groups:write",
        answers={204: None},
        refusals=NONE,
    )


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-groups."""
    tenant = asked.path["tenant"]
    service.fleet.refuse_unless_tenant(tenant)
    rows = service.groups.page(tenant, key_of(asked.query.cursor, str) or "", asked.query.limit + 1)
    return Reply(page_of([_described(row) for row in rows], asked.query.limit, lambda group: group.group))


async def add(service: DeviceService, asked: Asked[NoQuery, NewGroup]) -> Reply:
    """Answer add-group."""
    tenant, name = asked.path["tenant"], asked.body.group
    service.fleet.refuse_unless_tenant(tenant)
    if name in {".", ".."}:
        raise unprocessable("group: not a name")
    if service.groups.count(tenant) >= service.limits.groups_max:
        raise Refused(409, "too-many-groups", f"a tenant has at most {service.limits.groups_max} groups")
    if not service.groups.add(tenant, name, asked.body.description, clock.unix_s()):
        raise Refused(409, "exists", f"there is a group {name}")
    service.journal.did(asked.caller, tenant, "group.add", subject=f"group/{name}")
    return Reply(_found(service, tenant, name), 201, {"Location": f"/v1/tenants/{tenant}/groups/{name}"})


async def find(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-group."""
    return Reply(_found(service, asked.path["tenant"], asked.path["group"]))


async def remove(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer remove-group."""
    tenant, name = asked.path["tenant"], asked.path["group"]
    if not service.groups.remove(tenant, name):
        raise not_found(f"group {name}")
    service.journal.did(asked.caller, tenant, "group.remove", subject=f"group/{name}")
    return Reply(None, 204)


async def members(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-group-devices."""
    tenant, name = asked.path["tenant"], asked.path["group"]
    _found(service, tenant, name)
    after = key_of(asked.query.cursor, str) or ""
    names = service.groups.members(tenant, name, after, asked.query.limit + 1)
    return Reply(page_of([Member(each) for each in names], asked.query.limit, lambda member: member.device))


async def join(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer add-group-device."""
    tenant, name, device = asked.path["tenant"], asked.path["group"], asked.path["device"]
    _found(service, tenant, name)
    service.fleet.row(tenant, device)
    if service.groups.join(tenant, name, device):
        service.journal.did(asked.caller, tenant, "group.join", device=device, subject=f"group/{name}")
    return Reply(None, 204)


async def leave(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer remove-group-device."""
    tenant, name, device = asked.path["tenant"], asked.path["group"], asked.path["device"]
    if not service.groups.leave(tenant, name, device):
        raise not_found(f"device {device} in group {name}")
    service.journal.did(asked.caller, tenant, "group.leave", device=device, subject=f"group/{name}")
    return Reply(None, 204)


def _found(service: DeviceService, tenant: str, name: str) -> Group:
    row = service.groups.find(tenant, name)
    if row is None:
        raise not_found(f"group {name}")
    return _described(row)


def _described(row: GroupRow) -> Group:
    return Group(group=row.name, description=row.description, created_at=at(row.created_s))
