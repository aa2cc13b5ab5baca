"""Gateway routes: what matches, the virtual service it leads to, and what is rewritten on the way."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from routing.mesh.model.routes import (
    GrpcRouteMetadataList,
    HttpMethod,
    HttpPathMatch,
    HttpQueryParameters,
    HttpRouteHeaders,
)
from routing.mesh.model.shape import HttpPath, PortNumber, Priority, ResourceName, Shape

HostName = Annotated[str, Meta(min_length=1, max_length=253)]
Default = Literal["ENABLED", "DISABLED"]


class GatewayRouteHostnameMatch(Shape, frozen=True, kw_only=True):
    """The host that is asked for, whole or its end."""

    exactly_one: ClassVar = ("exact", "suffix")

    exact: HostName | None = None
    suffix: HostName | None = None


class GatewayRouteHostnameRewrite(Shape, frozen=True, kw_only=True):
    """Whether the host becomes the name of the virtual service: ENABLED unless said otherwise."""

    default_target_hostname: Default | None = None


class GatewayRouteVirtualService(Shape, frozen=True, kw_only=True):
    """The virtual service that a route leads to."""

    virtual_service_name: ResourceName


class GatewayRouteTarget(Shape, frozen=True, kw_only=True):
    """The virtual service that a route leads to, and its port if it has several."""

    virtual_service: GatewayRouteVirtualService
    port: PortNumber | None = None


class GrpcGatewayRouteRewrite(Shape, frozen=True, kw_only=True):
    """What is rewritten."""

    hostname: GatewayRouteHostnameRewrite | None = None


class GrpcGatewayRouteAction(Shape, frozen=True, kw_only=True):
    """Where a call goes."""

    target: GatewayRouteTarget
    rewrite: GrpcGatewayRouteRewrite | None = None


class GrpcGatewayRouteMatch(Shape, frozen=True, kw_only=True):
    """What a call must be: all that is said here."""

    hostname: GatewayRouteHostnameMatch | None = None
    metadata: GrpcRouteMetadataList | None = None
    port: PortNumber | None = None
    service_name: str | None = None


class GrpcGatewayRoute(Shape, frozen=True, kw_only=True):
    """A gateway route of gRPC."""

    action: GrpcGatewayRouteAction
    match: GrpcGatewayRouteMatch


class HttpGatewayRoutePathRewrite(Shape, frozen=True, kw_only=True):
    """What the whole path becomes."""

    exact: HttpPath | None = None


class HttpGatewayRoutePrefixRewrite(Shape, frozen=True, kw_only=True):
    """What the prefix becomes: `/` unless said otherwise, or itself where the default is DISABLED."""

    at_most_one: ClassVar = (("default_prefix", "value"),)

    default_prefix: Default | None = None
    value: HttpPath | None = None


class HttpGatewayRouteRewrite(Shape, frozen=True, kw_only=True):
    """What is rewritten."""

    at_most_one: ClassVar = (("path", "prefix"),)

    hostname: GatewayRouteHostnameRewrite | None = None
    path: HttpGatewayRoutePathRewrite | None = None
    prefix: HttpGatewayRoutePrefixRewrite | None = None


class HttpGatewayRouteAction(Shape, frozen=True, kw_only=True):
    """Where a request goes."""

    target: GatewayRouteTarget
    rewrite: HttpGatewayRouteRewrite | None = None


class HttpGatewayRouteMatch(Shape, frozen=True, kw_only=True):
    """What a request must be: all that is said here."""

    at_most_one: ClassVar = (("prefix", "path"),)

    headers: HttpRouteHeaders | None = None
    hostname: GatewayRouteHostnameMatch | None = None
    method: HttpMethod | None = None
    path: HttpPathMatch | None = None
    port: PortNumber | None = None
    prefix: str | None = None
    query_parameters: HttpQueryParameters | None = None


class HttpGatewayRoute(Shape, frozen=True, kw_only=True):
    """A gateway route of HTTP/1.1 or HTTP/2."""

    action: HttpGatewayRouteAction
    match: HttpGatewayRouteMatch


class GatewayRouteSpec(Shape, frozen=True, kw_only=True):
    """A gateway route; the lower the priority, the earlier it is looked at."""

    exactly_one: ClassVar = ("grpc_route", "http_route", "http2_route")

    grpc_route: GrpcGatewayRoute | None = None
    http2_route: HttpGatewayRoute | None = None
    http_route: HttpGatewayRoute | None = None
    priority: Priority | None = None
