"""What listeners are made of: HTTP connection managers, TCP proxies, inspectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterConfig as GrpcStats
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2 import HttpInspector
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from routing.mesh.compile.messages import Config, extension, milliseconds, yes
from routing.mesh.compile.observing import Observed
from routing.mesh.model.listening import TcpTimeout

GRPC_CALLEE: Final = re.compile(r"cds_egress_.+_grpc_[0-9]+")
ALPN: Final = {"http": ["http/1.1"], "http2": ["h2"], "grpc": ["h2"], "tcp": []}


def manager(
    name: str,
    routes: Config,
    observed: Observed,
    *,
    before: Sequence[Config] = (),
    codec: str = "AUTO",
    edge: bool = False,
) -> Config:
    """Return an HTTP connection manager with its routes, and what filters requests `before` these are taken.

    At the `edge`, no caller is believed.
    """
    config: Config = {
        "stat_prefix": name,
        "codec_type": codec,
        "route_config": routes,
        "http_filters": [
            *before,
            *([_grpc_statistics()] if _leads_to_grpc(routes) else ()),
            extension("envoy.filters.http.router", Router),
        ],
        **observed.manager(edge=edge),
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": yes(),
        "use_remote_address": {"value": edge},
    }
    if edge:
        config["path_with_escaped_slashes_action"] = "UNESCAPE_AND_REDIRECT"
        config["common_http_protocol_options"] = {"headers_with_underscores_action": "REJECT_REQUEST"}
    return extension("envoy.filters.network.http_connection_manager", HttpConnectionManager, config)


def _leads_to_grpc(table: Config) -> bool:
    """Return whether a table of routes leads to a callee that speaks gRPC, as its cluster is named."""
    actions = [route.get("route", {}) for host in table["virtual_hosts"] for route in host["routes"]]
    split = [one for action in actions for one in action.get("weighted_clusters", {}).get("clusters", ())]
    names = [action.get("cluster", "") for action in actions] + [one["name"] for one in split]
    return any(GRPC_CALLEE.match(name) for name in names)


def _grpc_statistics() -> Config:
    """Return the filter that counts statuses of gRPC by cluster: Envoy itself counts those of HTTP alone.

    It does not count by method, of which there may be any number.
    """
    return extension("envoy.filters.http.grpc_stats", GrpcStats, {"stats_for_all_methods": {"value": False}})


def tcp_proxy(name: str, towards: Config, timeout: TcpTimeout | None, observed: Observed) -> Config:
    """Return a filter that passes on a connection."""
    config: Config = {"stat_prefix": name, "access_log": list(observed.connections), **towards}
    if timeout is not None and timeout.idle is not None:
        config["idle_timeout"] = milliseconds(timeout.idle.milliseconds)
    return extension("envoy.filters.network.tcp_proxy", TcpProxy, config)


def original_destination() -> Config:
    """Return the filter that finds out where a redirected connection was going."""
    return extension("envoy.filters.listener.original_dst", OriginalDst)


def tls_inspector(but: list[int] | None = None) -> Config:
    """Return the filter that finds out whether TLS is spoken, but not on the ports `but`."""
    return {**extension("envoy.filters.listener.tls_inspector", TlsInspector), **_disabled(but or [])}


def http_inspector(but: list[int] | None = None) -> Config:
    """Return the filter that finds out whether HTTP is spoken, but not on the ports `but`."""
    return {**extension("envoy.filters.listener.http_inspector", HttpInspector), **_disabled(but or [])}


def _disabled(ports: list[int]) -> Config:
    """Return for which ports nobody waits for a first byte, which may be the server's to send."""
    ranges: list[Config] = [{"destination_port_range": {"start": port, "end": port + 1}} for port in ports]
    if not ranges:
        return {}
    return {"filter_disabled": ranges[0] if len(ranges) == 1 else {"or_match": {"rules": ranges}}}
