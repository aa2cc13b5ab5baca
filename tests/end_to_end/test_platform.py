from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routing.gateway import routes_file
from routing.gateway.routes_file import Route
from routing.tenancy.identity import Kind
from routing.tenancy.registry import Status
from runtime import clock
from services.analytics.app import operations as analytics_operations
from services.data.app import operations as data_operations
from services.device.app import operations as device_operations
from services.web.operations import Operations
from tests.support.platform import JSON, TENANT, Running, certificate_for, platform

pytestmark = pytest.mark.end_to_end
ROUTES = Path(__file__).parents[2] / "services/routes.toml"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with platform(tmp_path_factory.mktemp("platform")) as started:
        yield started


def test_a_device_is_provisioned_and_sends_with_its_new_certificate(running: Running, tmp_path: Path) -> None:
    device = certificate_for(running, tmp_path, "pump-7")
    reading = json.dumps({"ts": 1_764_000_000_000, "metrics": {"temperature": 21.5}})
    assert running.curl(*device, *JSON, "-d", reading, f"{running.ingest_url}/v1/telemetry/sensors")[0] == 202

    status, body = running.curl(*device, f"{running.url}/v1/whoami")
    assert (status, json.loads(body)["device"]) == (200, "pump-7")
    shadow = f"{running.url}/v1/tenants/{TENANT}/devices/pump-7/shadow"
    patch = ("-X", "PATCH", "-H", "Content-Type: application/merge-patch+json", "-d", '{"fan": "on"}')
    assert running.curl(*device, *patch, f"{shadow}/reported")[0] == 200
    status, body = running.curl("-H", f"X-API-Key: {running.key}", shadow)
    assert status == 200
    assert json.loads(body)["reported"]["state"] == {"fan": "on"}


def test_what_a_device_sends_is_read_back_as_a_roll_up(running: Running, tmp_path: Path) -> None:
    device = certificate_for(running, tmp_path, "pump-9")
    key, sent_ms = ("-H", f"X-API-Key: {running.key}"), clock.unix_ms()
    for number in range(10):
        reading = json.dumps({"ts": sent_ms - number, "metrics": {"flow": float(number)}})
        sent = running.curl(*device, *JSON, "-d", reading, f"{running.ingest_url}/v1/telemetry/sensors")
        assert sent[0] == 202
    url = f"{running.url}/v1/tenants/{TENANT}/devices/pump-9/rollups?metric=flow&window=1h"
    ends_s = time.monotonic() + 20
    while True:
        status, body = running.curl(*key, url)
        windows = json.loads(body).get("items", [])
        if sum(window["count"] for window in windows) == 10:
            break
        assert time.monotonic() < ends_s, (status, body)
        time.sleep(0.1)
    assert sum(window["statistics"]["sum"] for window in windows) == 45.0
    assert running.curl(*device, url)[0] == 401, "a device does not read roll-ups"


def test_a_revoked_certificate_is_refused_by_both_gateways_within_a_second(
    running: Running, tmp_path: Path
) -> None:
    device = certificate_for(running, tmp_path, "pump-8")
    key = ("-H", f"X-API-Key: {running.key}")
    certificates = f"{running.url}/v1/tenants/{TENANT}/devices/pump-8/certificates"
    [row] = json.loads(running.curl(*key, certificates)[1])["items"]
    assert running.curl(*device, f"{running.url}/v1/whoami")[0] == 200
    assert running.curl(*key, "-X", "DELETE", f"{certificates}/{row['serial']}")[0] in {200, 204}
    time.sleep(1.3)  # the promise is a second; the poll of certificates is one too
    for url in (f"{running.url}/v1/whoami", f"{running.ingest_url}/v1/telemetry/sensors"):
        with pytest.raises(subprocess.CalledProcessError):
            running.curl(*device, *JSON, "-d", '{"ts": 1, "metrics": {"a": 1}}', url)


@pytest.mark.parametrize(
    ("upstream", "operations", "internal"),
    [
        ("device", device_operations(), set()),
        ("data", data_operations(), {"tail"}),
        ("analytics", analytics_operations(), set()),
    ],
)
def test_the_standard_routes_are_the_operations_of_the_services_with_their_scopes(
    upstream: str, operations: Operations[Any], internal: set[str]
) -> None:
    routed = {
        (route.method, route.path, route.operation.partition("#")[2], tuple(route.scopes))
        for route in routes_file.load(ROUTES).routes
        if route.upstream == upstream
    }
    assert routed == {
        (operation.method, operation.path, operation.name, (operation.scope,) if operation.scope else ())
        for operation in operations
        if operation.name not in internal
    }


# The authorization matrix: every route, every credential, own and foreign tenant.

NAMES = {
    "device": "nobody",
    "group": "nobody",
    "serial": "00",
    "claim": "0" * 16,
    "import_id": "0" * 16,
    "key": "0" * 12,
}
DENIALS = {
    "unauthenticated",
    "missing-scope",
    "foreign-tenant",
    "foreign-device",
    "suspended",
    "operators-only",
    "not-for-devices",
}
CREDENTIALS = (
    "nothing",
    "a key nobody issued",
    "a revoked key",
    "an expired key",
    "a key without scopes",
    "its scopes",
    "another tenant's key",
    "a suspended tenant's key",
    "an operator's key",
    "a certificate of the device",
    "a certificate of another device",
)


def all_routes() -> list[Route]:
    return routes_file.load(ROUTES).routes


def filled(route: Route, tenant: str, device: str) -> str:
    path = route.path
    for name in routes_file.parameters(route.path):
        value = {"tenant": tenant, "device": device}.get(name) or NAMES[name]
        path = path.replace(f"{{{name}}}", value)
    return path


def expected(route: Route, credential: str) -> set[str]:
    """Return the denials that are right; empty when the caller may."""
    if route.public:
        return set()
    parameters = routes_file.parameters(route.path)
    if credential.startswith("a certificate"):
        if "certificate" not in route.authorizers:
            return {"unauthenticated"}
        if not set(route.scopes) <= {"shadow:read", "shadow:write"}:
            return {"missing-scope"}
        if credential.endswith("another device") and "device" in parameters:
            return {"foreign-device"}
        return {"not-for-devices"} if route.name == "change-shadow-desired" else set()
    if credential in {"nothing", "a key nobody issued", "a revoked key", "an expired key"}:
        return {"unauthenticated"}
    if credential == "a suspended tenant's key":
        return {"suspended"}
    if credential == "a key without scopes" and route.scopes:
        return {"missing-scope"}
    if credential == "another tenant's key" and "tenant" in parameters:
        return {"foreign-tenant"}
    return {"operators-only"} if route.name == "change-tenant" and credential == "its scopes" else set()


class Keys:
    """A key of each kind, for the scopes of one route at a time."""

    def __init__(self, running: Running) -> None:
        self._running = running
        with running.registry() as registry:
            now_s = clock.unix_s()
            for tenant in ("other", "suspended"):
                registry.add_tenant(tenant, "default", now_s)
            registry.set_tenant_status("suspended", Status.SUSPENDED, now_s)

    def of(self, credential: str, scopes: list[str]) -> tuple[str, ...]:
        now_s = clock.unix_s()
        tenants = {
            "another tenant's key": "other",
            "a suspended tenant's key": "suspended",
            "an operator's key": "*",
        }
        tenant = tenants.get(credential, TENANT)
        granted = [] if credential == "a key without scopes" else scopes
        expires_s = now_s - 1 if credential == "an expired key" else None
        with self._running.registry() as registry:
            key, secret = registry.issue_key(tenant, "m", Kind.CALLER, now_s, expires_s, scopes=granted)
            if credential == "a revoked key":
                registry.revoke_key(key.id)
        return ("-H", f"X-API-Key: {secret}")


@pytest.fixture(scope="module")
def keys(running: Running) -> Keys:
    return Keys(running)


@pytest.fixture(scope="module")
def devices(running: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("devices")
    return {name: certificate_for(running, folder, name) for name in ("matrix-1", "matrix-2")}


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_a_caller_gets_in_where_it_may_and_nowhere_else(
    running: Running, keys: Keys, devices: dict[str, tuple[str, ...]], credential: str
) -> None:
    if credential == "a suspended tenant's key":
        time.sleep(0.6)  # the registry is looked at twice a second
    wrong: list[Any] = []
    for route in all_routes():
        shown: tuple[str, ...] = ()
        if credential.startswith("a certificate"):
            shown = devices["matrix-2" if credential.endswith("another device") else "matrix-1"]
        elif credential == "a key nobody issued":
            shown = ("-H", f"X-API-Key: hw_{'0' * 12}_{'0' * 64}")
        elif credential != "nothing":
            shown = keys.of(credential, route.scopes)
        body = (*JSON, "-d", "{}") if route.method in {"POST", "PATCH"} else ()
        device = "nobody" if route.method == "DELETE" else "matrix-1"
        url = running.url + filled(route, TENANT, device)
        status, said = running.curl(*shown, *body, "-X", route.method, url)
        slug = ""
        if status >= 400:
            slug = json.loads(said)["type"].rpartition(":")[2]
        denied = {slug} & DENIALS
        if denied != expected(route, credential) or (status in {401, 403}) != bool(denied):
            wrong.append((route.method, route.path, status, slug, expected(route, credential)))
    assert not wrong


def test_only_what_describes_the_api_is_open_to_everybody() -> None:
    public = {route.name for route in all_routes() if route.public}
    assert public == {"openapi", "openapi-v2", "docs", "docs-v2"}
