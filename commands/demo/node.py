"""Sets a development node up under one folder: certificates, settings, and the gateway as a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from ingest.pki import DevelopmentCa, Issued
from runtime import clock

TENANT: Final = "demo"
START_DEADLINE_S: Final = 30.0
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
        self._process: asyncio.subprocess.Process | None = None

    def prepare(self, devices: int) -> dict[str, Issued]:
        """Write certificates and settings; return the devices' certificates by name."""
        self.ca.server(["localhost", "127.0.0.1"])
        self.settings.write_text(SETTINGS.format(folder=self.folder, **msgspec.structs.asdict(self.ports)))
        return {name: self.ca.device(TENANT, name) for name in (f"device-{n}" for n in range(1, devices + 1))}

    async def start(self) -> None:
        """Start the gateway and wait until it is ready; raises `RuntimeError` with its last words."""
        log = (self.folder / "headworks.log").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "commands.cli",
            "serve",
            "--config",
            str(self.settings),
            stderr=log,
            stdout=log,
            start_new_session=True,  # Ctrl-C is for us to handle, then we drain it
        )
        log.close()
        until_s = clock.monotonic_s() + START_DEADLINE_S
        while clock.monotonic_s() < until_s and self._process.returncode is None:
            status = await self.status()
            if status is not None and status["ready"]:
                return
            await asyncio.sleep(0.1)
        words = (self.folder / "headworks.log").read_text().strip().splitlines()[-1:]
        raise RuntimeError(words[0] if words else "the gateway did not become ready")

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
        if self._process is None:
            return 1
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()
