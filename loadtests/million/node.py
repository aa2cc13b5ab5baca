"""The gateway that holds a million: its settings, and how many connections a worker has room for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from loadtests import node
from loadtests.node import free_port

DRAIN_DEADLINE_S: Final = 60
OTHER_DESCRIPTORS: Final = 300
"""What a worker has beside its connections: spool, registry, log, and two a worker for mail."""
DESCRIPTORS_A_WORKER: Final = 2
SETTINGS: Final = """\
[node]
name = "million"
data_dir = "{folder}/data"
workers = {workers}
drain_deadline_s = {drain_s}
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{port}"
{listener}
[accept]
connections_max = {connections_max}
{lingers}[sink]
kind = "{sink}"
[limits.default]
device_messages_per_s = {device_per_s}
device_connections_max = 2
[memory]
devices_max = {devices}
sessions_max = {devices}
idempotency_keys_max = 1000
[admin]
bind = "127.0.0.1:{admin}"
"""
PLAIN: Final = 'tls = "off"\nauth = ["topic"]'
MUTUAL: Final = """\
tls = "mutual"
auth = ["certificate"]
[tls]
certificate = "{folder}/pki/server.crt"
key = "{folder}/pki/server.key"
client_ca = "{folder}/pki/ca.crt"
crl = "{folder}/pki/crl.pem"
"""


def connections_max(descriptors: int, workers: int) -> int:
    """Return how many connections a worker has descriptors for."""
    return descriptors - OTHER_DESCRIPTORS - DESCRIPTORS_A_WORKER * workers


class Node(node.Node):
    """One gateway for a fleet of plain or mutual TLS MQTT devices."""

    def __init__(
        self,
        folder: Path,
        *,
        devices: int,
        workers: int,
        descriptors: int,
        linger_s: float,
        compiled: Path | None,
    ) -> None:
        super().__init__(folder, workers=workers, compiled=compiled)
        self._devices = devices
        self._linger_s = linger_s
        self._connections_max = connections_max(descriptors, workers)
        self.port = free_port()

    async def prepare(self, *, sink: str, device_per_s: float, tls: bool, more: str) -> None:
        """Write the settings, and the certificates of the gateway; `more` is further TOML."""
        if tls:
            await self.make_pki()
        text = SETTINGS.format(
            folder=self.folder,
            workers=self._workers,
            drain_s=DRAIN_DEADLINE_S,
            port=self.port,
            listener=MUTUAL.format(folder=self.folder) if tls else PLAIN,
            connections_max=self._connections_max,
            lingers=f"[mqtt]\nlinger_s = {self._linger_s}\n" if self._linger_s else "",
            sink=sink,
            device_per_s=device_per_s,
            devices=self._devices,
            admin=self._admin,
        )
        self.write_settings(text + more)
