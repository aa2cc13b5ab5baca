"""Operations on the shadow of a device.

Callers say what a device should be like (`desired`), the device says what it is like (`reported`), and reads
what it has to change (`delta`). A device may wait for that: `wait_s` with `If-None-Match`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from runtime import clock
from services.device import shadow as decider
from services.device.api.versions import (
    CHANGED,
    IF_MATCH,
    IF_NONE_MATCH,
    etag,
    is_known,
    refuse_unless_matches,
)
from services.device.resources import Shadow, at_or_none
from services.device.resources import Side as SideShown
from services.device.service import DeviceService
from services.device.store.shadows import ShadowRow, Side, SideRow
from services.web.operations import JSON, MERGE_PATCH, Asked, NoBody, NoQuery, Operations, Reply
from services.web.refusal import Refused, unprocessable

WHOLE: Final = "/v1/tenants/{tenant}/devices/{device}/shadow"
NONE: Final = {404: "There is no such device."}


class WaitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long to wait for a change."""

    wait_s: Annotated[
        float,
        msgspec.Meta(ge=0, le=60, description="With If-None-Match: wait so long for something new."),
    ] = 0.0


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        WHOLE,
        find,
        name="get-shadow",
        summary="Show both sides of a shadow, and what the device has to change",
        tag="shadows",
        scope="shadow:read",
        query=WaitQuery,
        answers={200: Shadow, 304: None},
        refusals=NONE,
        headers=IF_NONE_MATCH,
    )
    for side, read, write, text in (
        ("desired", find_desired, change_desired, "what the device should be like"),
        ("reported", find_reported, change_reported, "what the device says it is like"),
    ):
        operations.add(
            "GET",
            f"{WHOLE}/{side}",
            read,
            name=f"get-shadow-{side}",
            summary=f"Show {text}",
            tag="shadows",
            scope="shadow:read",
            answers={200: SideShown, 304: None},
            refusals=NONE,
            headers=IF_NONE_MATCH,
        )
        operations.add(
            "PATCH",
            f"{WHOLE}/{side}",
            write,
            name=f"change-shadow-{side}",
            summary=f"Change {text} (JSON merge patch)",
            tag="shadows",
            scope="shadow:write",
            body=dict[str, Any],
            body_types=(MERGE_PATCH, JSON),
            answers={200: SideShown},
            refusals={**NONE, **CHANGED},
            headers=IF_MATCH,
        )


async def find(service: DeviceService, asked: Asked[WaitQuery, NoBody]) -> Reply:
    """Answer get-shadow; waits while the caller knows all there is."""
    tenant, device = asked.path["tenant"], asked.path["device"]
    service.fleet.row(tenant, device)

    def is_new() -> bool:
        return not is_known(asked.request, _tag(service.shadows.find(tenant, device)))

    if asked.query.wait_s > 0 and not is_new():
        await service.waiters.wait(tenant, device, is_new, asked.query.wait_s)
        service.fleet.row(tenant, device)
    row = service.shadows.find(tenant, device)
    tag = _tag(row)
    if is_known(asked.request, tag):
        return Reply(None, 304, {"ETag": tag})
    return Reply(described(row), 200, {"ETag": tag})


async def find_desired(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-shadow-desired."""
    return _shown(service, asked, "desired")


async def find_reported(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-shadow-reported."""
    return _shown(service, asked, "reported")


async def change_desired(service: DeviceService, asked: Asked[NoQuery, dict[str, Any]]) -> Reply:
    """Answer change-shadow-desired."""
    if asked.caller.device:
        raise Refused(403, "not-for-devices", "a device reports; what is desired of it others say")
    return _changed(service, asked, "desired")


async def change_reported(service: DeviceService, asked: Asked[NoQuery, dict[str, Any]]) -> Reply:
    """Answer change-shadow-reported."""
    return _changed(service, asked, "reported")


def _shown(service: DeviceService, asked: Asked[NoQuery, NoBody], side: Side) -> Reply:
    tenant, device = asked.path["tenant"], asked.path["device"]
    service.fleet.row(tenant, device)
    row = service.shadows.find(tenant, device).side(side)
    tag = etag(row.version)
    if is_known(asked.request, tag):
        return Reply(None, 304, {"ETag": tag})
    return Reply(_side(row), 200, {"ETag": tag})


def _changed(service: DeviceService, asked: Asked[NoQuery, dict[str, Any]], side: Side) -> Reply:
    tenant, device = asked.path["tenant"], asked.path["device"]
    service.fleet.row(tenant, device)
    before = service.shadows.find(tenant, device).side(side)
    refuse_unless_matches(asked.request, etag(before.version))
    if decider.too_deep(asked.body):
        raise unprocessable(f"at most {decider.DEPTH_MAX} levels")
    state = decider.merge_patch(before.state, asked.body)
    if decider.size(state) > service.limits.shadow_bytes_max:
        raise unprocessable(
            f"one side of a shadow has at most {service.limits.shadow_bytes_max} bytes of JSON"
        )
    after = before
    if not decider.same(state, before.state):
        after = SideRow(state, before.version + 1, clock.unix_s())
        service.shadows.put(tenant, device, side, after)
        if side == "desired":  # a device may report every few seconds, which nobody wants to audit
            service.journal.did(asked.caller, tenant, "shadow.desire", device=device)
        service.waiters.changed(tenant, device)
    return Reply(_side(after), 200, {"ETag": etag(after.version)})


def described(row: ShadowRow) -> Shadow:
    """Return a shadow as callers see it."""
    return Shadow(
        desired=_side(row.desired),
        reported=_side(row.reported),
        delta=decider.delta(row.desired.state, row.reported.state),
    )


def _side(row: SideRow) -> SideShown:
    return SideShown(state=row.state, version=row.version, updated_at=at_or_none(row.updated_s))


def _tag(row: ShadowRow) -> str:
    return etag(row.desired.version, row.reported.version)
