"""Listeners of nodes and gateways: ports, timeouts, pools, health, ejection, access logs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from routing.mesh.model.shape import (
    Duration,
    FilePath,
    GatewayProtocol,
    OneOf,
    PortNumber,
    Positive,
    Protocol,
    Shape,
)
from routing.mesh.model.tls import ListenerTls

Threshold = Annotated[int, Meta(ge=2, le=10)]
IntervalMillis = Annotated[int, Meta(ge=5000, le=300_000)]
TimeoutMillis = Annotated[int, Meta(ge=2000, le=60_000)]
JsonText = Annotated[str, Meta(min_length=1, max_length=100)]


class PortMapping(Shape, frozen=True, kw_only=True):
    """A port, and what is spoken there."""

    port: PortNumber
    protocol: Protocol


class HttpTimeout(Shape, frozen=True, kw_only=True):
    """Timeouts of HTTP: of a request (15 s unless said otherwise), and of silence."""

    idle: Duration | None = None
    per_request: Duration | None = None


class GrpcTimeout(Shape, frozen=True, kw_only=True):
    """Timeouts of gRPC, as those of HTTP."""

    idle: Duration | None = None
    per_request: Duration | None = None


class TcpTimeout(Shape, frozen=True, kw_only=True):
    """How long a connection may be silent."""

    idle: Duration | None = None


class ListenerTimeout(OneOf, frozen=True, kw_only=True):
    """Timeouts by the protocol of the listener."""

    grpc: GrpcTimeout | None = None
    http: HttpTimeout | None = None
    http2: HttpTimeout | None = None
    tcp: TcpTimeout | None = None


class GrpcConnectionPool(Shape, frozen=True, kw_only=True):
    """How many requests may be in flight."""

    max_requests: Positive


class HttpConnectionPool(Shape, frozen=True, kw_only=True):
    """How many connections there may be, and how many requests may wait for one."""

    max_connections: Positive
    max_pending_requests: Positive | None = None


class Http2ConnectionPool(Shape, frozen=True, kw_only=True):
    """How many requests may be in flight."""

    max_requests: Positive


class TcpConnectionPool(Shape, frozen=True, kw_only=True):
    """How many connections there may be."""

    max_connections: Positive


class VirtualNodeConnectionPool(OneOf, frozen=True, kw_only=True):
    """Limits of what a node's proxy asks of the application, by the protocol of the listener."""

    grpc: GrpcConnectionPool | None = None
    http: HttpConnectionPool | None = None
    http2: Http2ConnectionPool | None = None
    tcp: TcpConnectionPool | None = None


class VirtualGatewayConnectionPool(OneOf, frozen=True, kw_only=True):
    """Limits of what a gateway passes on, by the protocol of the listener."""

    grpc: GrpcConnectionPool | None = None
    http: HttpConnectionPool | None = None
    http2: Http2ConnectionPool | None = None


class HealthCheckPolicy(Shape, frozen=True, kw_only=True):
    """How callers find out whether an endpoint is well."""

    healthy_threshold: Threshold
    interval_millis: IntervalMillis
    protocol: Protocol
    timeout_millis: TimeoutMillis
    unhealthy_threshold: Threshold
    path: str | None = None
    port: PortNumber | None = None


class VirtualGatewayHealthCheckPolicy(Shape, frozen=True, kw_only=True):
    """How a load balancer before it finds out whether a gateway is well."""

    healthy_threshold: Threshold
    interval_millis: IntervalMillis
    protocol: GatewayProtocol
    timeout_millis: TimeoutMillis
    unhealthy_threshold: Threshold
    path: str | None = None
    port: PortNumber | None = None


class OutlierDetection(Shape, frozen=True, kw_only=True):
    """When callers leave out an endpoint that fails, and for how long."""

    base_ejection_duration: Duration
    interval: Duration
    max_ejection_percent: Annotated[int, Meta(ge=0, le=100)]
    max_server_errors: Positive


class Listener(Shape, frozen=True, kw_only=True):
    """Where a node is called."""

    port_mapping: PortMapping
    connection_pool: VirtualNodeConnectionPool | None = None
    health_check: HealthCheckPolicy | None = None
    outlier_detection: OutlierDetection | None = None
    timeout: ListenerTimeout | None = None
    tls: ListenerTls | None = None


class VirtualGatewayPortMapping(Shape, frozen=True, kw_only=True):
    """A port of a gateway, and what is spoken there."""

    port: PortNumber
    protocol: GatewayProtocol


class VirtualGatewayListener(Shape, frozen=True, kw_only=True):
    """Where a gateway is called."""

    port_mapping: VirtualGatewayPortMapping
    connection_pool: VirtualGatewayConnectionPool | None = None
    health_check: VirtualGatewayHealthCheckPolicy | None = None
    tls: ListenerTls | None = None


class JsonFormatRef(Shape, frozen=True, kw_only=True):
    """A key of a line of the access log, and what Envoy puts there."""

    key: JsonText
    value: JsonText


class LoggingFormat(OneOf, frozen=True, kw_only=True):
    """What a line of the access log has."""

    json: tuple[JsonFormatRef, ...] | None = None
    text: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None


class FileAccessLog(Shape, frozen=True, kw_only=True):
    """An access log in a file, such as /dev/stdout."""

    path: FilePath
    format: LoggingFormat | None = None


class AccessLog(OneOf, frozen=True, kw_only=True):
    """Where the access log goes."""

    file: FileAccessLog | None = None


class Logging(Shape, frozen=True, kw_only=True):
    """What a proxy logs."""

    access_log: AccessLog | None = None
