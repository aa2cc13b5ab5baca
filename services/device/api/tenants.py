"""Operations on tenants; only an operator of the platform adds or changes one."""

from __future__ import annotations

from msgspec import UNSET

from routing.tenancy import registry as registered
from routing.tenancy.principal import EVERY_TENANT
from routing.tenancy.registry import Status
from runtime import clock
from services.device.fleet import status_name
from services.device.resources import NewTenant, Tenant, TenantPatch, at
from services.device.service import DeviceService
from services.web.operations import JSON, MERGE_PATCH, Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.passport import Caller
from services.web.refusal import Refused, not_found, unprocessable


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        "/v1/tenants",
        find_all,
        name="list-tenants",
        summary="List tenants: all to an operator, their own to others",
        tag="tenants",
        scope="tenants:read",
        query=PageQuery,
        answers={200: Page[Tenant]},
    )
    operations.add(
        "POST",
        "/v1/tenants",
        add,
        name="add-tenant",
        summary="Add a tenant (operators)",
        tag="tenants",
        scope="tenants:write",
        body=NewTenant,
        answers={201: Tenant},
        refusals={409: "There is one of this name."},
    )
    operations.add(
        "GET",
        "/v1/tenants/{tenant}",
        find,
        name="get-tenant",
        summary="Show a tenant",
        tag="tenants",
        scope="tenants:read",
        answers={200: Tenant},
        refusals={404: "There is none."},
    )
    operations.add(
        "PATCH",
        "/v1/tenants/{tenant}",
        change,
        name="change-tenant",
        summary="Change a tenant's plan, suspend it or resume it (operators)",
        description="Who is suspended is refused and put out by the ingestion gateway within a second.",
        tag="tenants",
        scope="tenants:write",
        body=TenantPatch,
        body_types=(MERGE_PATCH, JSON),
        answers={200: Tenant},
        refusals={404: "There is none."},
    )


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-tenants."""
    limit, after = asked.query.limit, key_of(asked.query.cursor, str) or ""
    if asked.caller.tenant == EVERY_TENANT:
        rows = service.registry.tenants_after(after, limit + 1)
    else:
        own = service.registry.tenant(asked.caller.tenant)
        rows = [own] if own is not None and own.name > after else []
    return Reply(page_of([_described(row) for row in rows], limit, lambda tenant: tenant.tenant))


async def add(service: DeviceService, asked: Asked[NoQuery, NewTenant]) -> Reply:
    """Answer add-tenant."""
    _refuse_unless_operator(asked.caller)
    name = asked.body.tenant
    if name in {".", ".."}:
        raise unprocessable("tenant: not a name")
    if service.registry.tenant(name) is not None:
        raise Refused(409, "exists", f"there is a tenant {name}")
    service.registry.add_tenant(name, asked.body.plan, clock.unix_s())
    service.journal.did(asked.caller, name, "tenant.add", subject=f"tenant/{name}")
    return Reply(_found(service, name), 201, {"Location": f"/v1/tenants/{name}"})


async def find(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-tenant."""
    return Reply(_found(service, asked.path["tenant"]))


async def change(service: DeviceService, asked: Asked[NoQuery, TenantPatch]) -> Reply:
    """Answer change-tenant."""
    _refuse_unless_operator(asked.caller)
    name = asked.path["tenant"]
    _found(service, name)
    if asked.body.plan is not UNSET:
        service.registry.add_tenant(name, asked.body.plan, clock.unix_s())
        service.journal.did(asked.caller, name, "tenant.plan", subject=f"tenant/{name}")
    if asked.body.status is not UNSET:
        service.registry.set_tenant_status(name, Status(asked.body.status), clock.unix_s())
        service.journal.did(asked.caller, name, f"tenant.{asked.body.status}", subject=f"tenant/{name}")
    return Reply(_found(service, name))


def _refuse_unless_operator(caller: Caller) -> None:
    if caller.tenant != EVERY_TENANT:
        raise Refused(403, "operators-only", "only an operator of the platform may do this")


def _found(service: DeviceService, name: str) -> Tenant:
    row = service.registry.tenant(name)
    if row is None:
        raise not_found(f"tenant {name}")
    return _described(row)


def _described(row: registered.Tenant) -> Tenant:
    return Tenant(
        tenant=row.name, plan=row.plan, status=status_name(row.status), created_at=at(row.created_s)
    )
