"""Virtual gateways: a request is matched and rewritten first, and then routed as its service says.

Each listener of a gateway passes on to a second one inside of the same proxy, which has the routes of the
services: a route of a service matches what a gateway route made of the request. The service goes with it
in a header that no caller can set, because the Host need not name it.
"""

from __future__ import annotations

import re
from typing import Final

from envoy.extensions.bootstrap.internal_listener.v3.internal_listener_pb2 import InternalListener

from routing.mesh.compile import clusters, filters, matches, named
from routing.mesh.compile.called import Directory
from routing.mesh.compile.messages import Config, address, extension, milliseconds
from routing.mesh.compile.observing import UNOBSERVED
from routing.mesh.compile.policies import Policies
from routing.mesh.compile.proxy import Proxy
from routing.mesh.compile.tls import listener_socket, secret_source
from routing.mesh.model.gateway_routes import (
    GatewayRouteHostnameRewrite,
    GatewayRouteTarget,
    GrpcGatewayRoute,
    HttpGatewayRoute,
)
from routing.mesh.model.listening import VirtualGatewayListener
from routing.mesh.model.resources import GatewayRoute, VirtualGateway
from routing.mesh.snapshot import MeshSnapshot

SERVICE: Final = "x-headworks-service"
EDGE_BUFFER_BYTES: Final = 32_768


def gateway(
    snapshot: MeshSnapshot, of: VirtualGateway, proxy: Proxy, directory: Directory, policies: Policies
) -> tuple[list[Config], list[Config]]:
    """Return the listeners and the clusters of a gateway, but those of the nodes that it calls."""
    listeners: list[Config] = []
    made: list[Config] = []
    routes = snapshot.gateway_routes(of.virtual_gateway_name)
    services = _service_routes(routes, directory)
    for listener in of.spec.listeners:
        mapping = listener.port_mapping
        inner = f"lds_services_{mapping.port}"
        cluster = f"cds_services_{of.mesh_name}_{of.virtual_gateway_name}_{mapping.protocol}_{mapping.port}"
        made.append(clusters.inside(cluster, mapping.protocol, inner, listener.connection_pool))
        first = _first(routes, mapping.port, cluster, directory, policies)
        listeners += _listeners(of, listener, proxy, first, policies)
        table = {
            "name": f"rds_services_{mapping.port}",
            "virtual_hosts": [{"name": "services", "domains": ["*"], "routes": services}],
            "request_headers_to_remove": [SERVICE],
        }
        listeners.append(
            {
                "name": inner,
                "internal_listener": {},
                "filter_chains": [
                    {"filters": [filters.manager(inner, table, UNOBSERVED, before=policies.filters(table))]}
                ],
            }
        )
    return listeners, made


def bootstrap_extension() -> Config:
    """Return what a proxy must be started with to have listeners inside."""
    return extension("envoy.bootstrap.internal_listener", InternalListener)


def _listeners(
    of: VirtualGateway,
    listener: VirtualGatewayListener,
    proxy: Proxy,
    routes: list[Config],
    policies: Policies,
) -> list[Config]:
    """Return the listener that callers connect to."""
    port, protocol = listener.port_mapping.port, listener.port_mapping.protocol
    name = f"rds_ingress_{of.mesh_name}_{of.virtual_gateway_name}_{port}"
    host = {"name": "gateway", "domains": ["*"], "routes": routes}
    table = {"name": name, "virtual_hosts": [host], **policies.said(of.path)}
    codec = "AUTO" if protocol == "http" else "HTTP2"
    before = policies.filters(table)
    manager = filters.manager(name, table, policies.observed, before=before, codec=codec, edge=True)
    tls = listener.tls
    plain: Config = {"name": name, "filters": [manager]}
    chains = [plain]
    inspectors: list[Config] = []
    if tls is not None and tls.mode != "DISABLED":
        alpn = ["h2", "http/1.1"] if protocol == "http" else filters.ALPN[protocol]
        encrypted = {
            **plain,
            "name": f"{name}_tls",
            "transport_socket": listener_socket(tls, alpn, secret_source(proxy)),
        }
        chains = [encrypted]
        if tls.mode == "PERMISSIVE":
            inspectors = [filters.tls_inspector()]
            chains = [
                {**encrypted, "filter_chain_match": {"transport_protocol": "tls"}},
                {**plain, "filter_chain_match": {"transport_protocol": "raw_buffer"}},
            ]
    return [
        {
            "name": f"lds_ingress_{proxy.listen}_{port}",
            "address": address(proxy.listen, port),
            "traffic_direction": "INBOUND",
            "per_connection_buffer_limit_bytes": {"value": EDGE_BUFFER_BYTES},
            "listener_filters": inspectors,
            "filter_chains": chains,
        }
    ]


def _target(route: GatewayRoute) -> GatewayRouteTarget:
    of_kind = route.spec.http_route or route.spec.http2_route or route.spec.grpc_route
    assert of_kind is not None
    return of_kind.action.target


def _key(route: GatewayRoute, directory: Directory) -> str:
    """Return the service and the port that a route leads to."""
    target = _target(route)
    name = target.virtual_service.virtual_service_name
    return f"{name}:{target.port or directory.only_port(name)}"


def _service_routes(routes: tuple[GatewayRoute, ...], directory: Directory) -> list[Config]:
    """Return the routes of all services that a gateway leads to, each with the service that it is of."""
    made: list[Config] = []
    names = dict.fromkeys(_target(route).virtual_service.virtual_service_name for route in routes)
    for name in names:
        for called in directory.called(name, None):
            own = {"name": SERVICE, "string_match": {"exact": f"{name}:{called.mapping.port}"}}
            for route in called.routes:
                match = route["match"]
                headers = [own, *match.get("headers", [])]
                made.append({**route, "match": {**match, "headers": headers}})
    return made


def _first(
    routes: tuple[GatewayRoute, ...], port: int, cluster: str, directory: Directory, policies: Policies
) -> list[Config]:
    """Return the routes of a gateway for one of its ports, in the order in which they are looked at."""
    made: list[tuple[matches.Order, Config]] = []
    for route in routes:
        of_http = route.spec.http_route or route.spec.http2_route
        of_kind: HttpGatewayRoute | GrpcGatewayRoute | None = of_http or route.spec.grpc_route
        assert of_kind is not None
        if of_kind.match.port not in {None, port}:
            continue
        if isinstance(of_kind, HttpGatewayRoute):
            match = matches.http(of_kind.match)
            rewrite = _path(of_kind)
        else:
            match = matches.grpc(of_kind.match)
            rewrite = {}
        if _renames_host(of_kind):
            rewrite["host_rewrite_literal"] = _target(route).virtual_service.virtual_service_name
        header = {"key": SERVICE, "value": _key(route, directory)}
        made.append(
            (
                matches.order(route.spec.priority, match, route.gateway_route_name),
                {
                    "name": route.gateway_route_name,
                    **named.route(f"{route.virtual_gateway_name}/{route.gateway_route_name}"),
                    "match": match.config,
                    "route": {
                        "cluster": cluster,
                        "timeout": milliseconds(0),
                        "idle_timeout": milliseconds(0),
                        **rewrite,
                    },
                    "request_headers_to_add": [
                        {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
                    ],
                    **policies.said(route.path),
                },
            )
        )
    return [config for _, config in sorted(made, key=lambda each: each[0])]


def _renames_host(of_kind: HttpGatewayRoute | GrpcGatewayRoute) -> bool:
    """Return whether the Host becomes the name of the service, as it does unless that is disabled."""
    rewrite = of_kind.action.rewrite
    hostname: GatewayRouteHostnameRewrite | None = rewrite.hostname if rewrite is not None else None
    return hostname is None or hostname.default_target_hostname != "DISABLED"


def _path(route: HttpGatewayRoute) -> Config:
    """Return how the path is rewritten: a prefix becomes `/` unless something else is said, a path stays."""
    rewrite = route.action.rewrite
    if route.match.path is not None:
        if rewrite is None or rewrite.path is None or rewrite.path.exact is None:
            return {}
        return _replaced("^.*$", rewrite.path.exact)
    prefix, becomes = route.match.prefix or "/", "/"
    if rewrite is not None and rewrite.prefix is not None:
        if rewrite.prefix.default_prefix == "DISABLED":
            return {}
        becomes = rewrite.prefix.value or "/"
    if prefix == becomes:
        return {}
    return _replaced(f"^{re.escape(prefix.rstrip('/'))}/?", f"{becomes.rstrip('/')}/")


def _replaced(regex: str, by: str) -> Config:
    literal = by.replace("\\", "\\\\")
    return {"regex_rewrite": {"pattern": {"regex": regex}, "substitution": literal}}
