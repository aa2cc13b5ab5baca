"""Tenants, devices, groups and keys over HTTP: what is asked for is there, once, and nobody else's."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest

from routing.tenancy.registry import Verdict
from tests.support.device_service import SCOPES, Service, device_service


async def pages(service: Service, path: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answer = await service.of_acme("GET", f"{path}?limit={limit}&cursor={cursor}")
        assert answer.status == 200
        assert len(answer.body["items"]) <= limit
        found += answer.body["items"]
        cursor = answer.body["next"]
        if not cursor:
            return found


async def test_only_an_operator_adds_tenants(service: Service) -> None:
    refused = await service.call("POST", "/v1/tenants", {"tenant": "new"})
    assert (refused.status, refused.slug) == (403, "operators-only")
    added = await service.call("POST", "/v1/tenants", {"tenant": "new", "plan": "gold"}, tenant="*")
    assert (added.status, added.headers["Location"]) == (201, "/v1/tenants/new")
    assert (added.body["plan"], added.body["status"]) == ("gold", "active")
    again = await service.call("POST", "/v1/tenants", {"tenant": "new"}, tenant="*")
    assert (again.status, again.slug) == (409, "exists")
    everybody = await service.call("GET", "/v1/tenants", tenant="*")
    assert [tenant["tenant"] for tenant in everybody.body["items"]] == ["acme", "new"]
    own = await service.call("GET", "/v1/tenants")
    assert [tenant["tenant"] for tenant in own.body["items"]] == ["acme"]
    refused = await service.call("PATCH", "/v1/tenants/acme", {"plan": "gold"})
    assert refused.slug == "operators-only"
    changed = await service.call(
        "PATCH", "/v1/tenants/acme", {"plan": "gold", "status": "suspended"}, tenant="*"
    )
    assert (changed.body["plan"], changed.body["status"]) == ("gold", "suspended")
    assert service.registry.judge("acme", "x", registered_only=False) is Verdict.SUSPENDED
    assert (await service.call("GET", "/v1/tenants/nobody", tenant="*")).status == 404


async def test_a_device_lives(service: Service) -> None:
    new = {"device": "pump", "attributes": {"model": "X1", "floor": 3, "spare": False}}
    added = await service.of_acme("POST", "/devices", new)
    assert added.status == 201
    assert (await service.of_acme("POST", "/devices", new)).slug == "exists"
    found = await service.of_acme("GET", "/devices/pump")
    assert found.body == added.body
    assert found.body["attributes"] == new["attributes"]
    known = await service.of_acme("GET", "/devices/pump", headers={"If-None-Match": found.headers["ETag"]})
    assert known.status == 304

    patch = {"attributes": {"floor": None, "model": "X2"}}
    etag = {"If-Match": found.headers["ETag"]}
    changed = await service.of_acme("PATCH", "/devices/pump", patch, headers=etag)
    assert changed.body["attributes"] == {"model": "X2", "spare": False}
    late = await service.of_acme("PATCH", "/devices/pump", patch, headers=etag)
    assert (late.status, late.slug) == (412, "changed-meanwhile")
    same = await service.of_acme("PATCH", "/devices/pump", patch, headers={"If-Match": "*"})
    assert same.body["version"] == changed.body["version"], "what changes nothing is no version"

    suspended = await service.of_acme("POST", "/devices/pump/suspend")
    assert suspended.body["status"] == "suspended"
    assert service.registry.judge("acme", "pump", registered_only=True) is Verdict.SUSPENDED
    await service.of_acme("POST", "/devices/pump/resume")
    assert service.registry.judge("acme", "pump", registered_only=True) is Verdict.ADMITTED

    assert (await service.of_acme("DELETE", "/devices/pump")).status == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/suspend"), ("GET", "/shadow")):
        assert (await service.of_acme(method, f"/devices/pump{path}")).status == 404
    again = await service.of_acme("POST", "/devices", {"device": "pump"})
    assert again.body["attributes"] == {}, "nothing is left of the one before"


@pytest.mark.parametrize(
    "attributes",
    [
        {"a": {"b": 1}},
        {"a": [1]},
        {"bad name": 1},
        {"": 1},
        {"a": "x" * 1025},
        {"a": 2**60},
        {f"a{number}": 1 for number in range(65)},
        {f"a{number}": "x" * 1000 for number in range(9)},
        {"a": None},
    ],
    ids=range(9),
)
async def test_attributes_have_limits(service: Service, attributes: dict[str, Any]) -> None:
    answer = await service.of_acme("POST", "/devices", {"device": "d", "attributes": attributes})
    assert answer.status in {400, 422}
    assert "attributes" in answer.body["detail"]


async def test_lists_come_in_pages(service: Service) -> None:
    names = [f"d{number:02}" for number in range(11)]
    for name in names:
        await service.of_acme("POST", "/devices", {"device": name})
        await service.of_acme("POST", "/groups", {"group": name})
        await service.of_acme("POST", f"/groups/d00/devices/{name}")
        await service.of_acme("POST", "/keys", {"name": name})
    for limit in (1, 5, 11, 12):
        assert [each["device"] for each in await pages(service, "/devices", limit)] == names
        assert [each["group"] for each in await pages(service, "/groups", limit)] == names
        assert [each["device"] for each in await pages(service, "/groups/d00/devices", limit)] == names
        assert sorted(each["name"] for each in await pages(service, "/keys", limit)) == names
        entries = await pages(service, "/audit", limit)
        assert [entry["number"] for entry in entries] == list(range(44, 0, -1))


async def test_groups_have_members(service: Service) -> None:
    await service.of_acme("POST", "/groups", {"group": "roof", "description": "up there"})
    await service.of_acme("POST", "/devices", {"device": "pump", "groups": ["roof"]})
    assert (await service.of_acme("GET", "/devices/pump")).body["groups"] == ["roof"]
    assert (await service.of_acme("POST", "/groups", {"group": "roof"})).slug == "exists"
    assert (await service.of_acme("POST", "/groups/roof/devices/nobody")).status == 404
    assert (await service.of_acme("POST", "/groups/none/devices/pump")).status == 404
    assert (
        await service.of_acme("POST", "/devices", {"device": "x", "groups": ["no"]})
    ).slug == "no-such-group"
    assert (await service.of_acme("DELETE", "/groups/roof/devices/pump")).status == 204
    assert (await service.of_acme("DELETE", "/groups/roof/devices/pump")).status == 404
    await service.of_acme("POST", "/groups/roof/devices/pump")
    assert (await service.of_acme("DELETE", "/groups/roof")).status == 204
    assert (await service.of_acme("GET", "/groups/roof")).status == 404
    assert (await service.of_acme("GET", "/devices/pump")).body["groups"] == []


async def test_a_tenant_has_as_much_as_it_may(tmp_path: Path) -> None:
    limits = [f"device.{name}_max=1" for name in ("devices", "groups", "claims", "keys")]
    async with device_service(tmp_path / "node", *limits) as service:
        for path, new in (
            ("/devices", {"device": "{}"}),
            ("/groups", {"group": "{}"}),
            ("/claims", {}),
            ("/keys", {"name": "{}"}),
        ):
            answers = [
                await service.of_acme("POST", path, {k: v.format(number) for k, v in new.items()})
                for number in ("a", "b")
            ]
            assert [answer.status for answer in answers] == [201, 409], path
            assert answers[1].slug == f"too-many-{path[1:]}"
        await service.of_acme("DELETE", "/devices/a")
        assert (await service.of_acme("POST", "/devices", {"device": "c"})).status == 201


async def test_a_key_gets_no_scope_that_its_maker_has_not(service: Service) -> None:
    poor = {"scopes": "keys:write devices:read"}
    refused = await service.of_acme("POST", "/keys", {"name": "k", "scopes": ["devices:write"]}, **poor)
    assert (refused.status, refused.slug) == (403, "scope-not-held")
    refused = await service.of_acme("POST", "/keys", {"name": "k", "kind": "gateway"}, **poor)
    assert refused.slug == "scope-not-held"
    refused = await service.of_acme("POST", "/keys", {"name": "k", "plan": "gold"}, **poor)
    assert refused.slug == "operators-only"
    made = await service.of_acme("POST", "/keys", {"name": "k", "scopes": ["devices:read"]}, **poor)
    assert made.status == 201
    key = service.registry.key_of(made.body["secret"], 2.0)
    assert key is not None
    assert (key.tenant, key.kind, key.scopes) == ("acme", "caller", ("devices:read",))
    refused = await service.of_acme("POST", f"/keys/{key.id}/rotate", {}, scopes="keys:write")
    assert refused.slug == "scope-not-held"


async def test_a_key_is_rotated_and_ends(service: Service) -> None:
    made = await service.of_acme("POST", "/keys", {"name": "k", "expires_in_s": 1000})
    identifier, old = made.body["id"], made.body["secret"]
    rotated = await service.of_acme("POST", f"/keys/{identifier}/rotate", {"overlap_s": 0})
    now_s = 0.0
    assert service.registry.key_of(rotated.body["secret"], now_s) is not None
    assert service.registry.key_of(old, math.inf) is None
    [shown] = (await service.of_acme("GET", "/keys")).body["items"]
    assert (shown["id"], shown["status"]) == (identifier, "active")
    assert "secret" not in shown
    other = await service.call("DELETE", f"/v1/tenants/other/keys/{identifier}", tenant="*")
    assert other.status == 404
    assert (await service.of_acme("DELETE", f"/keys/{identifier}")).status == 204
    assert service.registry.key_of(rotated.body["secret"], now_s) is None
    assert (await service.of_acme("POST", f"/keys/{identifier}/rotate", {})).slug == "not-current"
    assert (await service.of_acme("DELETE", "/keys/ffffffffffff")).status == 404


async def test_every_operation_denies_another_tenant_and_a_missing_scope(service: Service) -> None:
    from services.device.app import operations  # noqa: PLC0415

    path = {"tenant": "acme", "device": "d", "group": "g", "serial": "a", "import_id": "0" * 16}
    path |= {"claim": "0" * 16, "key": "0" * 12}
    for operation in operations():
        where = operation.path.format(**path)
        if operation.scope:
            without = " ".join(set(SCOPES.split()) - {operation.scope})
            answer = await service.call(operation.method, where, scopes=without)
            assert (answer.status, answer.slug) == (403, "missing-scope"), operation.name
        if "tenant" in operation.parameters:
            answer = await service.call(operation.method, where, tenant="other")
            assert (answer.status, answer.slug) == (403, "foreign-tenant"), operation.name
        if operation.scope:
            answer = await service.call(operation.method, where, device="another")
            assert (answer.status, answer.slug) == (403, "foreign-device"), operation.name


async def test_everything_that_changes_is_in_the_audit_log(service: Service) -> None:
    await service.of_acme("POST", "/devices", {"device": "pump"}, sub="alice")
    await service.of_acme("POST", "/devices", {"device": "valve"})
    await service.of_acme("PATCH", "/devices/pump/shadow/desired", {"a": 1}, sub="bob")
    await service.of_acme("GET", "/devices/pump")
    everything = (await service.of_acme("GET", "/audit")).body["items"]
    assert [(entry["actor"], entry["action"], entry["device"]) for entry in everything] == [
        ("bob@acme", "shadow.desire", "pump"),
        ("tester@acme", "device.add", "valve"),
        ("alice@acme", "device.add", "pump"),
    ]
    of_pump = (await service.of_acme("GET", "/audit?device=pump")).body["items"]
    assert [entry["number"] for entry in of_pump] == [3, 1]
    assert (await service.of_acme("GET", "/audit?device=nobody")).body["items"] == []
    kept = (service.folder / "audit.db").read_bytes()
    with contextlib.suppress(FileNotFoundError):
        kept += (service.folder / "audit.db-wal").read_bytes()
    assert b"pump" not in kept
