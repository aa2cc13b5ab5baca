"""The seven resources, as the service describes them: `spec` with names around it."""

from __future__ import annotations

from typing import Final, Literal

from routing.mesh.model.gateway_routes import GatewayRouteSpec
from routing.mesh.model.routes import RouteSpec
from routing.mesh.model.shape import AccountId, ResourceName, Shape, Timestamp
from routing.mesh.model.specs import (
    MeshSpec,
    VirtualGatewaySpec,
    VirtualNodeSpec,
    VirtualRouterSpec,
    VirtualServiceSpec,
)


class ResourceMetadata(Shape, frozen=True, kw_only=True):
    """What the service knows of a resource; absent of what was never created there."""

    arn: str
    created_at: Timestamp
    last_updated_at: Timestamp
    mesh_owner: AccountId
    resource_owner: AccountId
    uid: str
    version: int


class ResourceStatus(Shape, frozen=True, kw_only=True):
    """Whether a resource is there."""

    status: Literal["ACTIVE", "INACTIVE", "DELETED"]


class Resource(Shape, frozen=True, kw_only=True):
    """What all resources have."""

    mesh_name: ResourceName
    metadata: ResourceMetadata | None = None
    status: ResourceStatus | None = None

    @property
    def path(self) -> str:
        """The resource as the end of its ARN names it, such as `mesh/shop/virtualNode/cart`."""
        raise NotImplementedError


class Mesh(Resource, frozen=True, kw_only=True):
    """A mesh."""

    spec: MeshSpec = MeshSpec()

    @property
    def path(self) -> str:
        """The end of the ARN."""
        return f"mesh/{self.mesh_name}"


class VirtualService(Resource, frozen=True, kw_only=True):
    """A name that nodes call."""

    virtual_service_name: str
    spec: VirtualServiceSpec

    @property
    def path(self) -> str:
        """The end of the ARN."""
        return f"mesh/{self.mesh_name}/virtualService/{self.virtual_service_name}"


class VirtualNode(Resource, frozen=True, kw_only=True):
    """A group of equal endpoints."""

    virtual_node_name: ResourceName
    spec: VirtualNodeSpec

    @property
    def path(self) -> str:
        """The end of the ARN."""
        return f"mesh/{self.mesh_name}/virtualNode/{self.virtual_node_name}"


class VirtualRouter(Resource, frozen=True, kw_only=True):
    """Where the routes of a service are."""

    virtual_router_name: ResourceName
    spec: VirtualRouterSpec

    @property
    def path(self) -> str:
        """The end of the ARN."""
        return f"mesh/{self.mesh_name}/virtualRouter/{self.virtual_router_name}"


class Route(Resource, frozen=True, kw_only=True):
    """A route of a virtual router."""

    virtual_router_name: ResourceName
    route_name: ResourceName
    spec: RouteSpec

    @property
    def path(self) -> str:
        """The end of the ARN."""
        return f"mesh/{self.mesh_name}/virtualRouter/{self.virtual_router_name}/route/{self.route_name}"


class VirtualGateway(Resource, frozen=True, kw_only=True):
    """A proxy through which calls come into the mesh."""

    virtual_gateway_name: ResourceName
    spec: VirtualGatewaySpec

    @property
    def path(self) -> str:
        """The end of the ARN."""
        return f"mesh/{self.mesh_name}/virtualGateway/{self.virtual_gateway_name}"


class GatewayRoute(Resource, frozen=True, kw_only=True):
    """A route of a virtual gateway."""

    virtual_gateway_name: ResourceName
    gateway_route_name: ResourceName
    spec: GatewayRouteSpec

    @property
    def path(self) -> str:
        """The end of the ARN."""
        gateway = f"mesh/{self.mesh_name}/virtualGateway/{self.virtual_gateway_name}"
        return f"{gateway}/gatewayRoute/{self.gateway_route_name}"


KINDS: Final[dict[str, type[Resource]]] = {
    "mesh": Mesh,
    "virtualService": VirtualService,
    "virtualNode": VirtualNode,
    "virtualRouter": VirtualRouter,
    "route": Route,
    "virtualGateway": VirtualGateway,
    "gatewayRoute": GatewayRoute,
}
"""The resources by the member that wraps each in the answer of a `describe` call."""
