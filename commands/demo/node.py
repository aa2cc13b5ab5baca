"""Sets a development node up under one folder: certificates, settings, and the gateway as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from commands.demo.child import Child
from ingest.pki import DevelopmentCa, Issued

TENANT: Final = "demo"
SETTINGS: Final = """\
# Written by `headworks dev`; see docs/guides/settings.md.
[node]
name = "dev"
data_dir = "{folder}"

[[listeners]]
protocol = "mqtt"
bind = "0.0.0.0:{mqtts}"
tls = "mutual"
auth = ["certificate"]

[[listeners]]
protocol = "http"
bind = "0.0.0.0:{https}"
tls = "mutual"
auth = ["certificate", "api_key"]

[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{mqtt}"
tls = "off"
auth = ["topic"]

[[listeners]]
protocol = "http"
bind = "127.0.0.1:{http}"
tls = "off"
auth = ["topic", "api_key"]

[tls]
certificate = "{folder}/pki/server.crt"
key = "{folder}/pki/server.key"
client_ca = "{folder}/pki/ca.crt"
crl = "{folder}/pki/crl.pem"

[sink]
kind = "local"

[limits.default]
device_messages_per_s = 100

[admin]
bind = "127.0.0.1:{admin}"
"""


class Ports(msgspec.Struct, frozen=True):
    """Where the node listens."""

    mqtts: int = 8883
    https: int = 8443
    mqtt: int = 1883
    http: int = 8080
    admin: int = 9090


class DevNode:
    """A gateway as a child process."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        self.folder = folder
        self.ports = ports
        self.settings = folder / "headworks.toml"
        self.ca = DevelopmentCa.create(folder / "pki")
        self.ca.renew_crl()
        words = ["serve", "--config", str(self.settings)]
        self._gateway = Child("headworks serve", words, folder / "headworks.log")

    def prepare(self, devices: int) -> dict[str, Issued]:
        """Write certificates and settings; return the devices' certificates by name."""
        self.ca.server(["localhost", "127.0.0.1"])
        self.settings.write_text(SETTINGS.format(folder=self.folder, **msgspec.structs.asdict(self.ports)))
        return {name: self.ca.device(TENANT, name) for name in (f"device-{n}" for n in range(1, devices + 1))}

    async def start(self) -> None:
        """Start the gateway and wait until it is ready; raises `RuntimeError` with its last words."""
        await self._gateway.start(self._ready)

    async def _ready(self) -> bool:
        status = await self.status()
        return status is not None and bool(status["ready"])

    async def status(self) -> dict[str, Any] | None:
        """Return /status, or None when the node does not answer."""
        url = f"http://127.0.0.1:{self.ports.admin}/status"
        try:
            timeout = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as response:
                return msgspec.json.decode(await response.read(), type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def stop(self) -> int:
        """Drain the gateway; return its exit code."""
        return await self._gateway.stop()
