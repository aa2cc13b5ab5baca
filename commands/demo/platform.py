"""Puts the API gateway and its services beside a development node."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from commands.demo.child import Child
from commands.demo.node import TENANT, DevNode
from routing.tenancy.identity import Kind
from routing.tenancy.registry import Registry
from runtime import clock

ROUTES: Final = Path(__file__).parents[2] / "services/routes.toml"
KEY_NAME: Final = "demo"
SCOPES: Final = (
    "analytics:read",
    "audit:read",
    "certificates:write",
    "devices:read",
    "devices:write",
    "groups:read",
    "groups:write",
    "imports:write",
    "keys:read",
    "keys:write",
    "live:read",
    "privacy:write",
    "shadow:read",
    "shadow:write",
    "telemetry:read",
    "tenants:read",
    "usage:read",
)
SERVICES: Final = ("device", "data", "analytics")
API: Final = """\
# Written by `headworks dev`; see docs/guides/api.md.
[api]
bind = "0.0.0.0:{api}"
tls = "optional"
data_dir = "{folder}/api"
registry = "{folder}/registry.db"
routes = "{folder}/routes.toml"

[tls]
certificate = "{folder}/pki/server.crt"
key = "{folder}/pki/server.key"
client_ca = "{folder}/pki/ca.crt"
crl = "{folder}/pki/crl.pem"

[limits.default]
requests_per_s = 200

[admin]
bind = "127.0.0.1:{api_admin}"
"""
SERVICES_TOML: Final = """\
# Written by `headworks dev`; see docs/guides/data.md.
[service]
data_dir = "{folder}/services"
registry = "{folder}/registry.db"
passport_key = "{folder}/api/passport.pub"

[device]
bind = "127.0.0.1:{device}"
ca_dir = "{folder}/pki"
telemetry = "{folder}/local.db"

[feed]
file = "{folder}/local.db"

[data]
bind = "127.0.0.1:{data}"

[analytics]
bind = "127.0.0.1:{analytics}"
"""


class PlatformPorts(msgspec.Struct, frozen=True):
    """Where the API gateway and its services listen."""

    api: int = 8444
    api_admin: int = 9091
    device: int = 8101
    data: int = 8102
    analytics: int = 8103


class Platform:
    """The API gateway and the services of a development node, as child processes."""

    def __init__(self, node: DevNode, ports: PlatformPorts) -> None:
        self._node = node
        self.ports = ports
        self.key_file = node.folder / "demo.key"
        self._children: list[Child] = []

    def prepare(self) -> None:
        """Write settings, routes and a key for the demonstration's tenant."""
        folder = self._node.folder
        names = msgspec.structs.asdict(self.ports)
        (folder / "api.toml").write_text(API.format(folder=folder, **names))
        (folder / "services.toml").write_text(SERVICES_TOML.format(folder=folder, **names))
        routes = ROUTES.read_text()
        for field, port in msgspec.structs.asdict(PlatformPorts()).items():
            routes = routes.replace(f'"127.0.0.1:{port}"', f'"127.0.0.1:{names[field]}"')
        (folder / "routes.toml").write_text(routes.replace('"openapi/', f'"{ROUTES.parent}/openapi/'))
        with contextlib.closing(Registry(folder / "registry.db")) as registry:
            if not self._has_key(registry):
                self._issue_key(registry)

    def _has_key(self, registry: Registry) -> bool:
        """Return whether there is a key with these scopes: that of an earlier version may have fewer."""
        if not self.key_file.exists():
            return False
        scopes = {f"hw_{key.id}": set(key.scopes) for key in registry.keys(TENANT)}
        return scopes.get(self.key_file.read_text().rpartition("_")[0]) == set(SCOPES)

    def _issue_key(self, registry: Registry) -> None:
        now_s = clock.unix_s()
        registry.add_tenant(TENANT, "default", now_s)
        _, secret = registry.issue_key(TENANT, KEY_NAME, Kind.CALLER, now_s, None, scopes=SCOPES)
        self.key_file.unlink(missing_ok=True)
        descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{secret}\n")

    async def start(self) -> None:
        """Start the gateway, whose passports the services check, and then these; raises `RuntimeError`."""
        folder = self._node.folder
        await self._start("api", ["api", "--config", str(folder / "api.toml")], self.ports.api_admin)
        settings = ["--config", str(folder / "services.toml")]
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in SERVICES:
                    port = getattr(self.ports, name)
                    tasks.create_task(self._start(name, ["service", name, *settings], port))
        except* RuntimeError as errors:
            raise RuntimeError(str(errors.exceptions[0])) from errors

    async def _start(self, name: str, words: list[str], port: int) -> None:
        child = Child(f"headworks {name}", words, self._node.folder / f"{name}.log")
        self._children.append(child)
        await child.start(functools.partial(_healthy, port))

    async def stop(self) -> int:
        """Let all of them drain, the gateway first; return the first exit code that is not 0."""
        codes = [await child.stop() for child in self._children]
        return next((code for code in codes if code), 0)


async def _healthy(port: int) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=2)
        url = f"http://127.0.0.1:{port}/healthz"
        async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False
