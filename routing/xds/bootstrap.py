"""What an Envoy is started with to ask the control plane for everything else.

Where a proxy stands is known where it stands: its bootstrap has it in the metadata of the node, and the
control plane compiles for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.extensions.resource_monitors.downstream_connections.v3.downstream_connections_pb2 import (
    DownstreamConnectionsConfig,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf import json_format

from routing.mesh.compile.clusters import HTTP_OPTIONS
from routing.mesh.compile.gateway import bootstrap_extension
from routing.mesh.compile.messages import Config, Message, address, extension, milliseconds, number, packed
from routing.mesh.compile.node import CONNECTIONS_MAX, locality, sds_cluster
from routing.mesh.compile.proxy import Address, Proxy
from routing.mesh.compile.statistics import counting, stats_clusters, stats_listeners
from routing.mesh.compile.tls import SOCKET
from routing.xds.resources import AGGREGATED

CONTROL_PLANE: Final = "headworks_xds"
METADATA: Final = "headworks.proxy"
PLACES_MAX: Final = 200
"""Ports and services that the metadata of a node may have."""


class ClientTls(msgspec.Struct, frozen=True):
    """The files by which a proxy knows the control plane, and shows who it is."""

    authority: Path
    certificate: Path
    key: Path


class BadMetadata(Exception):
    """A node does not say where its proxy stands."""


def bootstrap(
    node: str, mesh: str, proxy: Proxy, server: Address, *, tls: ClientTls | None, delta: bool
) -> Message:
    """Return the bootstrap of a node, whose name is that of its certificate too."""
    metadata = msgspec.to_builtins(msgspec.structs.replace(proxy, endpoints={}), str_keys=True)
    clusters = [_control_plane(server, tls)]
    if proxy.sds_socket:
        clusters.append(sds_cluster(proxy.sds_socket))
    monitor = extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        DownstreamConnectionsConfig,
        {"max_active_downstream_connections": CONNECTIONS_MAX},
    )
    config: Config = {
        "node": {"id": node, "cluster": mesh, "locality": locality(proxy.standing)},
        **counting(node, mesh, proxy),
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL_PLANE}}],
            },
            "cds_config": AGGREGATED,
            "lds_config": AGGREGATED,
        },
        "static_resources": {
            "listeners": stats_listeners(proxy),
            "clusters": [*clusters, *stats_clusters(proxy)],
        },
        "bootstrap_extensions": [bootstrap_extension()],
        "overload_manager": {"resource_monitors": [monitor]},
    }
    made = Bootstrap(**config)
    made.node.metadata[METADATA] = msgspec.json.encode(metadata).decode()
    return made


def proxy_of(metadata: Any) -> Proxy:
    """Return where the proxy of a node stands, from the metadata that it sent; raises BadMetadata."""
    text = json_format.MessageToDict(metadata).get(METADATA)
    if not isinstance(text, str):
        raise BadMetadata(f"the node's metadata has no {METADATA}: start it with `headworks mesh bootstrap`")
    try:
        proxy = msgspec.json.decode(text, type=Proxy)
    except msgspec.DecodeError as error:
        raise BadMetadata(f"{METADATA}: {error}") from error
    if len(proxy.applications) + len(proxy.tcp_backends) > PLACES_MAX:
        raise BadMetadata(f"{METADATA} has more than {PLACES_MAX} ports")
    return msgspec.structs.replace(proxy, endpoints={})


def _control_plane(server: Address, tls: ClientTls | None) -> Config:
    keepalive = {"interval": milliseconds(30_000), "timeout": milliseconds(10_000)}
    http2 = {"explicit_http_config": {"http2_protocol_options": {"connection_keepalive": keepalive}}}
    config: Config = {
        "name": CONTROL_PLANE,
        "type": "STRICT_DNS",
        "connect_timeout": milliseconds(5000),
        "typed_extension_protocol_options": {HTTP_OPTIONS: packed(HttpProtocolOptions, http2)},
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_time": number(30), "keepalive_interval": number(10)}
        },
        "load_assignment": {
            "cluster_name": CONTROL_PLANE,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(server.host, server.port)}}]}],
        },
    }
    if tls is not None:
        config["transport_socket"] = _tls(server, tls)
    return config


def _tls(server: Address, tls: ClientTls) -> Config:
    numeric = server.host.replace(".", "").isdecimal() or ":" in server.host
    name = {"san_type": "IP_ADDRESS" if numeric else "DNS", "matcher": {"exact": server.host}}
    common = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(tls.certificate)},
                "private_key": {"filename": str(tls.key)},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(tls.authority)},
            "match_typed_subject_alt_names": [name],
        },
    }
    context: Config = {"common_tls_context": common}
    if not numeric:
        context["sni"] = server.host
    return extension(SOCKET, UpstreamTlsContext, context)
