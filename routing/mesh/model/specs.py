"""Meshes, virtual services, routers, nodes and gateways: what each is, by its `spec`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from routing.mesh.model.listening import Listener, Logging, PortMapping, VirtualGatewayListener
from routing.mesh.model.shape import IpPreference, OneOf, ResourceName, Shape
from routing.mesh.model.tls import BackendDefaults, ClientPolicy

CloudMapName = Annotated[str, Meta(min_length=1, max_length=1024)]


class EgressFilter(Shape, frozen=True, kw_only=True):
    """Whether a node may call what is not its backend."""

    type: Literal["ALLOW_ALL", "DROP_ALL"]


class MeshServiceDiscovery(Shape, frozen=True, kw_only=True):
    """Which addresses are preferred."""

    ip_preference: IpPreference | None = None


class MeshSpec(Shape, frozen=True, kw_only=True):
    """What holds for a whole mesh."""

    egress_filter: EgressFilter | None = None
    service_discovery: MeshServiceDiscovery | None = None


class VirtualNodeServiceProvider(Shape, frozen=True, kw_only=True):
    """The node that is a service."""

    virtual_node_name: ResourceName


class VirtualRouterServiceProvider(Shape, frozen=True, kw_only=True):
    """The router that is before a service."""

    virtual_router_name: ResourceName


class VirtualServiceProvider(OneOf, frozen=True, kw_only=True):
    """Who provides a service."""

    virtual_node: VirtualNodeServiceProvider | None = None
    virtual_router: VirtualRouterServiceProvider | None = None


class VirtualServiceSpec(Shape, frozen=True, kw_only=True):
    """A name to call, and who provides it."""

    provider: VirtualServiceProvider | None = None


class VirtualRouterListener(Shape, frozen=True, kw_only=True):
    """A port under which a router is called."""

    port_mapping: PortMapping


class VirtualRouterSpec(Shape, frozen=True, kw_only=True):
    """The ports under which a router is called."""

    listeners: tuple[VirtualRouterListener, ...] | None = None


class AwsCloudMapInstanceAttribute(Shape, frozen=True, kw_only=True):
    """An attribute that an instance must have."""

    key: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9!-~]+$")]
    value: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1024,
            pattern=r"^([a-zA-Z0-9!-~][  a-zA-Z0-9!-~]*){0,1}[a-zA-Z0-9!-~]{0,1}$",
        ),
    ]


class AwsCloudMapServiceDiscovery(Shape, frozen=True, kw_only=True):
    """Endpoints are what AWS Cloud Map discovers."""

    namespace_name: CloudMapName
    service_name: CloudMapName
    attributes: tuple[AwsCloudMapInstanceAttribute, ...] | None = None
    ip_preference: IpPreference | None = None


class DnsServiceDiscovery(Shape, frozen=True, kw_only=True):
    """Endpoints are what a name resolves to: one of them (LOADBALANCER), or all (ENDPOINTS)."""

    hostname: str
    ip_preference: IpPreference | None = None
    response_type: Literal["LOADBALANCER", "ENDPOINTS"] | None = None


class ServiceDiscovery(OneOf, frozen=True, kw_only=True):
    """How the endpoints of a node are found."""

    aws_cloud_map: AwsCloudMapServiceDiscovery | None = None
    dns: DnsServiceDiscovery | None = None


class VirtualServiceBackend(Shape, frozen=True, kw_only=True):
    """A virtual service that a node calls."""

    virtual_service_name: str
    client_policy: ClientPolicy | None = None


class Backend(OneOf, frozen=True, kw_only=True):
    """What a node calls."""

    virtual_service: VirtualServiceBackend | None = None


class VirtualNodeSpec(Shape, frozen=True, kw_only=True):
    """A group of equal endpoints: where they are called, and whom they call."""

    backend_defaults: BackendDefaults | None = None
    backends: tuple[Backend, ...] | None = None
    listeners: tuple[Listener, ...] | None = None
    logging: Logging | None = None
    service_discovery: ServiceDiscovery | None = None


class VirtualGatewaySpec(Shape, frozen=True, kw_only=True):
    """A proxy by itself through which calls come into the mesh."""

    listeners: tuple[VirtualGatewayListener, ...]
    backend_defaults: BackendDefaults | None = None
    logging: Logging | None = None
