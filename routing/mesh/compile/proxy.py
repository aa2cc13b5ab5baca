"""Where a proxy stands: what no resource says, because App Mesh left it to the task or the pod."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
EGRESS_PORT: Final = 15_001
INGRESS_PORT: Final = 15_000
ADMIN_PORT: Final = 9901
LOOPBACK: Final = "127.0.0.1"


class Address(msgspec.Struct, frozen=True):
    """A host, as an IP address, and a port."""

    host: str
    port: Port


class Endpoint(msgspec.Struct, frozen=True):
    """An endpoint of a node; without a port, that of the listener."""

    host: str
    port: Port | None = None
    region: str = ""
    zone: str = ""
    weight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class Standing(msgspec.Struct, frozen=True):
    """Where something is."""

    region: str = ""
    zone: str = ""


class Proxy(msgspec.Struct, frozen=True):
    """The ports of a proxy, which are those of App Mesh's own, and how it stands to its application.

    A port of the node in `applications` is bound by the proxy, which passes on to the address there. Every
    other one is the application's, and iptables must redirect what comes for it to `ingress_port`.
    A service in `tcp_backends` has a listener of its own; every other service that speaks TCP needs
    iptables to redirect what the application sends to `egress_port`.
    """

    listen: str = "0.0.0.0"  # noqa: S104  # callers are on other hosts
    ingress_port: Port = INGRESS_PORT
    egress_port: Port = EGRESS_PORT
    admin_port: Port = ADMIN_PORT
    applications: dict[int, Address] = msgspec.field(default_factory=dict)
    tcp_backends: dict[str, Address] = msgspec.field(default_factory=dict)
    endpoints: dict[str, tuple[Endpoint, ...]] = msgspec.field(default_factory=dict)
    """Endpoints of nodes by name, in place of what their service discovery would find."""
    stats: Address | None = None
    """Where its statistics can be asked for, in the form of Prometheus."""
    standing: Standing = Standing()
    sds_socket: str = ""
    """The Unix socket of a Secret Discovery Service, such as SPIRE's agent."""
    trust_domain: str = ""
    """That of the SPIFFE ids of the mesh."""
    issued: bool = False
    """Whether the control plane gives the proxy its certificate."""
