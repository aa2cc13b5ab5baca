"""From a mesh and the name of a proxy in it to all that Envoy needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.resource_monitors.downstream_connections.v3.downstream_connections_pb2 import (
    DownstreamConnectionsConfig,
)
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from routing.mesh.compile.called import Directory
from routing.mesh.compile.clusters import CONNECT_TIMEOUT_MS, HTTP_OPTIONS, Callee
from routing.mesh.compile.gateway import bootstrap_extension, gateway
from routing.mesh.compile.identity import Secured, foreign, secured, spiffe_id
from routing.mesh.compile.inbound import inbound
from routing.mesh.compile.messages import Config, Message, extension, milliseconds, packed
from routing.mesh.compile.observing import observed
from routing.mesh.compile.outbound import outbound
from routing.mesh.compile.policies import Policies
from routing.mesh.compile.proxy import Proxy, Standing
from routing.mesh.compile.statistics import counting, stats_clusters, stats_listeners
from routing.mesh.compile.tls import SDS_CLUSTER, secret_names
from routing.mesh.compile.uncompilable import Uncompilable, uncompilable
from routing.mesh.model.resources import Resource, VirtualGateway, VirtualNode
from routing.mesh.model.tls import BackendDefaults, ClientPolicyTls, ListenerTls
from routing.mesh.problem import Severity
from routing.mesh.snapshot import MeshSnapshot
from routing.mesh.unsupported import unsupported

CONNECTIONS_MAX: Final = 50_000


class Compiled(msgspec.Struct, frozen=True):
    """What a proxy runs: messages of Envoy's API."""

    id: str
    mesh: str
    listeners: tuple[Message, ...]
    clusters: tuple[Message, ...]
    callees: Mapping[str, Callee]
    """Whose endpoints were given, by the name of their cluster."""


def compiled(snapshot: MeshSnapshot, of: VirtualNode | VirtualGateway, proxy: Proxy) -> Compiled:
    """Return the configuration of the proxy of a node or a gateway; raises Uncompilable."""
    _refuse_unsupported(snapshot, of)
    try:
        listeners, clusters, callees = _configs(snapshot, of, proxy)
        return Compiled(
            id=of.path,
            mesh=snapshot.mesh.mesh_name,
            listeners=tuple(Listener(**config) for config in listeners),
            clusters=tuple(Cluster(**config) for config in clusters),
            callees=callees,
        )
    except ValueError as error:  # App Mesh's numbers have fewer limits than Envoy's
        raise uncompilable(of.path, "spec", f"has, or leads to, what Envoy cannot take: {error}") from error


def _configs(
    snapshot: MeshSnapshot, of: VirtualNode | VirtualGateway, proxy: Proxy
) -> tuple[list[Config], list[Config], Mapping[str, Callee]]:
    """Return the listeners and the clusters of a proxy, and the callees whose endpoints were given."""
    defaults = of.spec.backend_defaults
    observed_as = observed(snapshot, of)
    security = secured(snapshot, of, proxy)
    policies = Policies(snapshot, proxy, security, observed_as)
    policy = defaults.client_policy if defaults is not None else None
    directory = Directory(snapshot, proxy, policy, policies, security)
    if isinstance(of, VirtualGateway):
        listeners, clusters = gateway(snapshot, of, proxy, directory, policies)
    else:
        mesh = snapshot.mesh.spec
        preference = mesh.service_discovery.ip_preference if mesh.service_discovery is not None else None
        allow_all = mesh.egress_filter is not None and mesh.egress_filter.type == "ALLOW_ALL"
        listeners, clusters = inbound(of, proxy, preference, policies, security)
        more_listeners, more_clusters = outbound(of, proxy, directory, policies, allow_all=allow_all)
        listeners, clusters = [*listeners, *more_listeners], [*clusters, *more_clusters]
    clusters += [*directory.clusters, *policies.clusters, *observed_as.clusters]
    clusters += _secret_clusters(of, proxy, security, policies.tls)
    return listeners, clusters, directory.callees


def _secret_clusters(
    of: VirtualNode | VirtualGateway, proxy: Proxy, security: Secured | None, more: Sequence[ClientPolicyTls]
) -> list[Config]:
    """Return the cluster of the service that has a proxy's secrets, where it is not the control plane."""
    names = [name for tls in [*_all_tls(of), *more] for name in secret_names(tls)]
    if not names and security is None:
        return []
    if proxy.sds_socket:
        return [sds_cluster(proxy.sds_socket)]
    if not proxy.issued:
        text = (
            "has secrets of a Secret Discovery Service: give its socket, or let the control plane issue them"
        )
        raise uncompilable(of.path, "spec", text)
    if others := foreign(names, of, proxy):
        own = spiffe_id(proxy.trust_domain, of.path)
        text = f"has the secret {others[0]}: the control plane gives it {own} and the trust domain's alone"
        raise uncompilable(of.path, "spec", text)
    return []


def static(made: Compiled, proxy: Proxy) -> Message:
    """Return a bootstrap with everything in it: Envoy runs it as it is."""
    monitor = extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        DownstreamConnectionsConfig,
        {"max_active_downstream_connections": CONNECTIONS_MAX},
    )
    config: Config = {
        "node": {"id": made.id, "cluster": made.mesh, "locality": locality(proxy.standing)},
        **counting(made.id, made.mesh, proxy),
        "static_resources": {
            "listeners": [*made.listeners, *stats_listeners(proxy)],
            "clusters": [*made.clusters, *stats_clusters(proxy)],
        },
        "bootstrap_extensions": [bootstrap_extension()],
        "overload_manager": {"resource_monitors": [monitor]},
    }
    return Bootstrap(**config)


def locality(standing: Standing) -> Config:
    """Return where a proxy is."""
    return {"region": standing.region, "zone": standing.zone}


def reached(snapshot: MeshSnapshot, of: VirtualNode | VirtualGateway) -> list[Resource]:
    """Return the resources that say what a proxy does: its own, and the routes and nodes that it leads to."""
    found: list[Resource] = [snapshot.mesh, of]
    if isinstance(of, VirtualGateway):
        gateway_routes = snapshot.gateway_routes(of.virtual_gateway_name)
        found += gateway_routes
        kinds = [
            each.spec.http_route or each.spec.http2_route or each.spec.grpc_route for each in gateway_routes
        ]
        names = [
            kind.action.target.virtual_service.virtual_service_name for kind in kinds if kind is not None
        ]
    else:
        backends = [backend.virtual_service for backend in of.spec.backends or ()]
        names = [backend.virtual_service_name for backend in backends if backend is not None]
    for name in dict.fromkeys(names):
        provider = snapshot.services[name].spec.provider
        if provider is not None and provider.virtual_router is not None:
            found += snapshot.routes(provider.virtual_router.virtual_router_name)
    return found


def _refuse_unsupported(snapshot: MeshSnapshot, of: VirtualNode | VirtualGateway) -> None:
    problems = [
        problem
        for each in reached(snapshot, of)
        for problem in unsupported(each)
        if problem.severity is Severity.UNSUPPORTED
    ]
    if problems:
        raise Uncompilable(problems)


def _all_tls(of: VirtualNode | VirtualGateway) -> Sequence[ListenerTls | ClientPolicyTls]:
    listeners: list[ListenerTls | None] = [listener.tls for listener in of.spec.listeners or ()]
    defaults: list[BackendDefaults | None] = [of.spec.backend_defaults]
    policies = [each.client_policy for each in defaults if each is not None]
    if isinstance(of, VirtualNode):
        backends = [backend.virtual_service for backend in of.spec.backends or ()]
        policies += [backend.client_policy for backend in backends if backend is not None]
    offered = [tls for tls in listeners if tls is not None and tls.mode != "DISABLED"]
    return [*offered, *[policy.tls for policy in policies if policy is not None and policy.tls is not None]]


def sds_cluster(socket: str) -> Config:
    """Return the cluster of a Secret Discovery Service, which Envoy wants to be static."""
    options = packed(HttpProtocolOptions, {"explicit_http_config": {"http2_protocol_options": {}}})
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket}}}}
    return {
        "name": SDS_CLUSTER,
        "type": "STATIC",
        "connect_timeout": milliseconds(CONNECT_TIMEOUT_MS),
        "typed_extension_protocol_options": {HTTP_OPTIONS: options},
        "load_assignment": {"cluster_name": SDS_CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
