"""Every combination of tenant, device and scopes of a caller against what a route asks for."""

from __future__ import annotations

import itertools

import pytest

from routing.gateway.access import check, check_scopes, tenant_of
from routing.gateway.routes_file import Route
from routing.tenancy.identity import Credential
from routing.tenancy.principal import Principal


def route(path: str, *scopes: str, public: bool = False, tenant: str = "tenant") -> Route:
    return Route(
        name="r", method="GET", path=path, upstream="u", scopes=list(scopes), public=public, tenant=tenant
    )


def caller(tenant: str, *scopes: str, device: str = "") -> Principal:
    return Principal(
        tenant=tenant, name="jo", scopes=frozenset(scopes), credential=Credential.JWT, device=device
    )


OF_A_DEVICE = route("/v1/tenants/{tenant}/devices/{device}", "devices:read", "shadow:read")
OF_NOBODY = route("/v1/whoami")
PATH = {"tenant": "t", "device": "d"}


@pytest.mark.parametrize(
    ("tenant", "device", "scopes"),
    list(
        itertools.product(
            ["t", "u", "*", "", "T", "t "],
            ["", "d", "e", "*"],
            [
                (),
                ("devices:read",),
                ("shadow:read",),
                ("devices:read", "shadow:read"),
                ("devices:write", "*:*"),
            ],
        )
    ),
)
def test_all_three_must_fit(tenant: str, device: str, scopes: tuple[str, ...]) -> None:
    denied = check(OF_A_DEVICE, PATH, caller(tenant, *scopes, device=device))
    if tenant not in {"t", "*"}:
        assert denied is not None
        assert denied.slug == "foreign-tenant"
        assert "t " not in denied.detail.split("tenant")[1]
    elif device not in {"", "d"}:
        assert denied is not None
        assert denied.slug == "foreign-device"
    elif not {"devices:read", "shadow:read"} <= set(scopes):
        assert denied is not None
        assert denied.slug == "missing-scope"
        assert denied.detail.split()[-1] in {"devices:read", "shadow:read"}
    else:
        assert denied is None


def test_without_a_tenant_in_the_path_it_is_the_callers_own() -> None:
    assert check(OF_NOBODY, {}, caller("t")) is None
    assert tenant_of(OF_NOBODY, {}, caller("t")) == "t"
    assert tenant_of(OF_A_DEVICE, PATH, caller("*")) == "t"


def test_the_parameter_that_names_the_tenant_is_the_routes() -> None:
    other = route("/v1/accounts/{account}", tenant="account")
    assert check(other, {"account": "t"}, caller("t")) is None
    assert check(other, {"account": "u"}, caller("t")) is not None
    assert check(other, {"account": "u", "tenant": "t"}, caller("t")) is not None


def test_a_public_route_asks_for_nothing() -> None:
    assert check(route("/v1/tenants/{tenant}", public=True), {"tenant": "u"}, caller("t")) is None


def test_write_is_not_read() -> None:
    denied = check_scopes(["devices:read"], caller("t", "devices:write"))
    assert denied is not None
    assert "devices:read" in denied.detail
    assert check_scopes([], caller("t")) is None
