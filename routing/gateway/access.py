"""Whether a caller may do what a route does: scopes, tenant, device. Pure; missing means closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from routing.gateway.routes_file import Route
from routing.tenancy.principal import Principal

DEVICE: Final = "device"
"""The parameter of a path that names a device."""


class Denied(msgspec.Struct, frozen=True):
    """Why not, for a 403: a slug from a closed set, and a sentence that tells nothing about other tenants."""

    slug: str
    detail: str


def tenant_of(route: Route, parameters: Mapping[str, str], principal: Principal) -> str:
    """Return the tenant that a request is for: that of the path, else the caller's own."""
    return parameters.get(route.tenant, principal.tenant)


def check(route: Route, parameters: Mapping[str, str], principal: Principal) -> Denied | None:
    """Return why a caller may not use a route, or None when it may."""
    if route.public:
        return None
    if not principal.may_act_for(tenant_of(route, parameters, principal)):
        return Denied("foreign-tenant", "this credential is for another tenant")
    if principal.device and parameters.get(DEVICE, principal.device) != principal.device:
        return Denied("foreign-device", "this credential is for another device")
    return check_scopes(route.scopes, principal)


def check_scopes(scopes: Iterable[str], principal: Principal) -> Denied | None:
    """Return which scope a caller lacks, or None when it has all."""
    for scope in scopes:
        if scope not in principal.scopes:
            return Denied("missing-scope", f"this takes the scope {scope}")
    return None
