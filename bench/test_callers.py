"""What a caller of the API costs: who it is, whether its plan allows the call, and the line about it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from routing.gateway import access_log
from routing.gateway.authorizers import Authorizers
from routing.gateway.exchange import Exchange
from routing.gateway.routes_file import Authorizer
from routing.gateway.trace import begin
from routing.limits.plan import Plan
from routing.limits.usage_plans import UsagePlans
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Credential, Kind
from routing.tenancy.principal import Principal
from routing.tenancy.registry import Registry

PLANS = {"default": Plan(requests_per_s=1_000_000, concurrent_max=10_000, monthly_max=10**12)}
CALLER = Principal(
    tenant="acme",
    name="portal",
    scopes=frozenset({"devices:read"}),
    credential=Credential.API_KEY,
    fingerprint="k-1",
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry.db")
    made.add_tenant("acme", "default", 0.0)
    yield made
    made.close()


def test_identify_by_key(benchmark: Any, registry: Registry) -> None:
    _, secret = registry.issue_key("acme", "portal", Kind.CALLER, 0.0, None, scopes=("devices:read",))
    authorizers = Authorizers(
        {"key": Authorizer(kind="api_key")},
        registry=registry,
        names=CertificateNames(trust_domain=""),
        is_revoked=lambda _: False,
        now_s=lambda: 1.0,
        keys_fetched=lambda _, __: None,
    )
    request = make_mocked_request("GET", "/", headers={"X-API-Key": secret})

    def identified() -> Principal:
        asking = authorizers.identify(["key"], request)
        try:
            asking.send(None)
        except StopIteration as answer:
            found: Principal = answer.value
            return found
        raise AssertionError("an API key is known at once")

    assert benchmark(identified).name == "portal"


def test_admit_call(benchmark: Any, registry: Registry, tmp_path: Path) -> None:
    plans = UsagePlans(
        PLANS, plan_of=registry.plan_of, folder=tmp_path, shared=None, link_changed=lambda _: None
    )

    async def calls() -> None:
        for _ in range(100):
            plans.release(await plans.admit(CALLER, "acme"))

    loop = asyncio.new_event_loop()
    try:
        benchmark(lambda: loop.run_until_complete(calls()))
    finally:
        loop.close()
        plans.close()


def test_write_access_line(benchmark: Any) -> None:
    exchange = Exchange(make_mocked_request("GET", "/v1/a"), begin(None, None, 7 << 64 | 9), 10.0)
    exchange.principal, exchange.path, exchange.status = CALLER, "/v1/tenants/acme/devices/pump-7", 200

    assert benchmark(lambda: access_log.encoded(access_log.line_of(exchange, 10.1, 1e9)))
