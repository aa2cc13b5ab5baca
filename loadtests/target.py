"""Where the gateway is: its ports, and the CA whose certificates it takes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadtests.plan import Group


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses as host:port. `pki` has `ca.crt` and, to sign certificates of devices, `ca.key`."""

    mqtt: str = "127.0.0.1:1883"
    mqtts: str = "127.0.0.1:8883"
    http: str = "127.0.0.1:8080"
    https: str = "127.0.0.1:8443"
    admin: str = "127.0.0.1:9090"
    pki: str = "var/pki"

    def address_for(self, group: Group) -> tuple[str, int]:
        """Return where devices of a group connect."""
        if group.speaks == "mqtt":
            return split(self.mqtts if group.tls else self.mqtt)
        return split(self.https if group.tls else self.http)

    @property
    def ca(self) -> Path:
        """The certificate of the CA."""
        return Path(self.pki) / "ca.crt"


def split(address: str) -> tuple[str, int]:
    """Return the host and the port; raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host:
        raise ValueError(f"{address}: write host:port")
    return host, int(port)
