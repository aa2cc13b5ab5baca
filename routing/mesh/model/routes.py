"""Routes of virtual routers: what matches, whom it leads to, and how often it is tried."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from routing.mesh.model.listening import GrpcTimeout, HttpTimeout, TcpTimeout
from routing.mesh.model.shape import (
    Duration,
    HeaderMatch,
    HeaderName,
    HttpPath,
    Millis,
    OneOf,
    PortNumber,
    Priority,
    ResourceName,
    Shape,
)

HttpMethod = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]
GrpcRetryEvent = Literal["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"]
GrpcRetryEvents = Annotated[tuple[GrpcRetryEvent, ...], Meta(min_length=1, max_length=5)]
HttpRetryEvents = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=25)], ...], Meta(min_length=1, max_length=25)
]
TcpRetryEvents = Annotated[tuple[Literal["connection-error"], ...], Meta(min_length=1, max_length=1)]


class WeightedTarget(Shape, frozen=True, kw_only=True):
    """A node, and its share of what the route matches."""

    virtual_node: ResourceName
    weight: Annotated[int, Meta(ge=0, le=100)]
    port: PortNumber | None = None


WeightedTargets = Annotated[tuple[WeightedTarget, ...], Meta(min_length=1, max_length=10)]


class MatchRange(Shape, frozen=True, kw_only=True):
    """Numbers from `start` to before `end`."""

    end: int
    start: int


class HeaderMatchMethod(OneOf, frozen=True, kw_only=True):
    """How the value of a header is compared."""

    exact: HeaderMatch | None = None
    prefix: HeaderMatch | None = None
    range: MatchRange | None = None
    regex: HeaderMatch | None = None
    suffix: HeaderMatch | None = None


class HttpRouteHeader(Shape, frozen=True, kw_only=True):
    """A header that must match, or be there; with `invert`, that must not."""

    name: HeaderName
    invert: bool | None = None
    match: HeaderMatchMethod | None = None


HttpRouteHeaders = Annotated[tuple[HttpRouteHeader, ...], Meta(min_length=1, max_length=10)]


class HttpPathMatch(Shape, frozen=True, kw_only=True):
    """The whole path, without the query."""

    exactly_one: ClassVar = ("exact", "regex")

    exact: HttpPath | None = None
    regex: HttpPath | None = None


class QueryParameterMatch(Shape, frozen=True, kw_only=True):
    """The value of a query parameter."""

    exact: str | None = None


class HttpQueryParameter(Shape, frozen=True, kw_only=True):
    """A query parameter that must match, or be there."""

    name: str
    match: QueryParameterMatch | None = None


HttpQueryParameters = Annotated[tuple[HttpQueryParameter, ...], Meta(min_length=1, max_length=10)]


class HttpRouteMatch(Shape, frozen=True, kw_only=True):
    """What a request must be: all that is said here."""

    at_most_one: ClassVar = (("prefix", "path"),)

    headers: HttpRouteHeaders | None = None
    method: HttpMethod | None = None
    path: HttpPathMatch | None = None
    port: PortNumber | None = None
    prefix: str | None = None
    query_parameters: HttpQueryParameters | None = None
    scheme: Literal["http", "https"] | None = None


class HttpRetryPolicy(Shape, frozen=True, kw_only=True):
    """When a request is tried again, and how long each try may take."""

    max_retries: Millis
    per_retry_timeout: Duration
    http_retry_events: HttpRetryEvents | None = None
    tcp_retry_events: TcpRetryEvents | None = None


class HttpRouteAction(Shape, frozen=True, kw_only=True):
    """Whom a route leads to."""

    weighted_targets: WeightedTargets


class HttpRoute(Shape, frozen=True, kw_only=True):
    """A route of HTTP/1.1 or HTTP/2."""

    action: HttpRouteAction
    match: HttpRouteMatch
    retry_policy: HttpRetryPolicy | None = None
    timeout: HttpTimeout | None = None


class GrpcRouteMetadata(Shape, frozen=True, kw_only=True):
    """Metadata of a call that must match, or be there; with `invert`, that must not."""

    name: HeaderName
    invert: bool | None = None
    match: HeaderMatchMethod | None = None


GrpcRouteMetadataList = Annotated[tuple[GrpcRouteMetadata, ...], Meta(min_length=1, max_length=10)]


class GrpcRouteMatch(Shape, frozen=True, kw_only=True):
    """What a call must be: all that is said here."""

    metadata: GrpcRouteMetadataList | None = None
    method_name: Annotated[str, Meta(min_length=1, max_length=50)] | None = None
    port: PortNumber | None = None
    service_name: str | None = None


class GrpcRetryPolicy(Shape, frozen=True, kw_only=True):
    """When a call is tried again, and how long each try may take."""

    max_retries: Millis
    per_retry_timeout: Duration
    grpc_retry_events: GrpcRetryEvents | None = None
    http_retry_events: HttpRetryEvents | None = None
    tcp_retry_events: TcpRetryEvents | None = None


class GrpcRouteAction(Shape, frozen=True, kw_only=True):
    """Whom a route leads to."""

    weighted_targets: WeightedTargets


class GrpcRoute(Shape, frozen=True, kw_only=True):
    """A route of gRPC."""

    action: GrpcRouteAction
    match: GrpcRouteMatch
    retry_policy: GrpcRetryPolicy | None = None
    timeout: GrpcTimeout | None = None


class TcpRouteAction(Shape, frozen=True, kw_only=True):
    """Whom a route leads to."""

    weighted_targets: WeightedTargets


class TcpRouteMatch(Shape, frozen=True, kw_only=True):
    """The port of the router that a route is for."""

    port: PortNumber | None = None


class TcpRoute(Shape, frozen=True, kw_only=True):
    """A route of connections."""

    action: TcpRouteAction
    match: TcpRouteMatch | None = None
    timeout: TcpTimeout | None = None


class RouteSpec(Shape, frozen=True, kw_only=True):
    """A route; the lower the priority, the earlier it is looked at."""

    exactly_one: ClassVar = ("grpc_route", "http_route", "http2_route", "tcp_route")

    grpc_route: GrpcRoute | None = None
    http2_route: HttpRoute | None = None
    http_route: HttpRoute | None = None
    priority: Priority | None = None
    tcp_route: TcpRoute | None = None
