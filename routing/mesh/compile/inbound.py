"""The listeners under which a node is called, and the cluster of its application behind each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from routing.mesh.compile import clusters, filters, named, routes
from routing.mesh.compile.identity import Secured
from routing.mesh.compile.messages import Config, address, number
from routing.mesh.compile.policies import Policies
from routing.mesh.compile.proxy import Address, Proxy
from routing.mesh.compile.tls import listener_socket, secret_source
from routing.mesh.model.listening import GrpcTimeout, HttpTimeout, Listener, TcpTimeout
from routing.mesh.model.resources import VirtualNode
from routing.mesh.model.shape import IpPreference

GRPC_CHECK: Final = "/grpc.health.v1.Health/Check"


def inbound(
    node: VirtualNode,
    proxy: Proxy,
    preference: IpPreference | None,
    policies: Policies,
    security: Secured | None,
) -> tuple[list[Config], list[Config]]:
    """Return the listeners and the clusters of what comes in."""
    listeners: list[Config] = []
    local: list[Config] = []
    redirected: list[Config] = []
    inspected = False
    for listener in node.spec.listeners or ():
        mapping = listener.port_mapping
        name = f"cds_ingress_{node.mesh_name}_{node.virtual_node_name}_{mapping.protocol}_{mapping.port}"
        host = "::1" if (preference or "").startswith("IPv6") else "127.0.0.1"
        at = proxy.applications.get(mapping.port, Address(host, mapping.port))
        own = clusters.local(name, mapping.protocol, at, listener.connection_pool)
        local.append({**own, **named.callee(node.virtual_node_name)})
        chains = list(_chains(node, listener, name, proxy, policies, security))
        permissive = len(chains) > 1
        if mapping.port in proxy.applications:
            listeners.append(
                {
                    "name": f"lds_ingress_{proxy.listen}_{mapping.port}",
                    "address": address(proxy.listen, mapping.port),
                    "traffic_direction": "INBOUND",
                    "listener_filters": [filters.tls_inspector()] if permissive else [],
                    "filter_chains": chains,
                }
            )
            continue
        inspected = inspected or permissive
        for chain in chains:
            chain.setdefault("filter_chain_match", {})["destination_port"] = number(mapping.port)
        redirected += chains
    if redirected:
        listeners.append(
            {
                "name": f"lds_ingress_{proxy.listen}_{proxy.ingress_port}",
                "address": address(proxy.listen, proxy.ingress_port),
                "traffic_direction": "INBOUND",
                "listener_filters": [
                    filters.original_destination(),
                    *([filters.tls_inspector()] if inspected else []),
                ],
                "filter_chains": redirected,
            }
        )
    return listeners, local


def _chains(
    node: VirtualNode,
    listener: Listener,
    cluster: str,
    proxy: Proxy,
    policies: Policies,
    security: Secured | None,
) -> Iterator[Config]:
    """Yield the filter chains of a listener: one, or one with and one without TLS."""
    mapping = listener.port_mapping
    tls = listener.tls if security is None else security.listener_tls(mapping.protocol)
    plain = _filters(node, listener, cluster, policies, None)
    if tls is None or tls.mode == "DISABLED":
        yield {"name": cluster, "filters": plain}
        return
    encrypted: Config = {
        "filters": plain if security is None else _filters(node, listener, cluster, policies, security),
        "transport_socket": listener_socket(tls, filters.ALPN[mapping.protocol], secret_source(proxy)),
    }
    if tls.mode == "STRICT":
        yield {"name": cluster, **encrypted}
        return
    yield {"name": f"{cluster}_tls", "filter_chain_match": {"transport_protocol": "tls"}, **encrypted}
    yield {"name": cluster, "filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": plain}


def _filters(
    node: VirtualNode, listener: Listener, cluster: str, policies: Policies, security: Secured | None
) -> list[Config]:
    """Return the filters of a chain, with `security` those that look who calls."""
    if listener.port_mapping.protocol == "tcp":
        timeout = listener.timeout.tcp if listener.timeout is not None else None
        passed = filters.tcp_proxy(cluster, {"cluster": cluster}, timeout, policies.observed)
        return [passed] if security is None else [security.network_filter(cluster), passed]
    table = _table(node, listener, cluster, policies)
    before = [*([] if security is None else [security.http_filter()]), *policies.filters(table)]
    return [filters.manager(cluster, table, policies.observed, before=before)]


def _table(node: VirtualNode, listener: Listener, cluster: str, policies: Policies) -> Config:
    """Return the routes to the application: policies are of all requests, but not of health checks."""
    action = {"cluster": cluster, **routes.times(_timeout(listener))}
    said = policies.said(node.path)
    checked = [{"name": "health", "match": match, "route": action} for match in _checks(node, listener)]
    everything = {
        "name": "all",
        "match": {"prefix": "/"},
        "route": action,
        **said,
        **named.route(node.virtual_node_name),
    }
    made = [*(checked if said else ()), everything]
    return {"name": cluster, "virtual_hosts": [{"name": "application", "domains": ["*"], "routes": made}]}


def _checks(node: VirtualNode, listener: Listener) -> Iterator[Config]:
    """Yield what health checks of a node ask a listener for."""
    port = listener.port_mapping.port
    for each in node.spec.listeners or ():
        check = each.health_check
        if check is None or (check.port or each.port_mapping.port) != port or check.protocol == "tcp":
            continue
        asked = "GET" if check.protocol != "grpc" else "POST"
        path = (check.path or "/") if check.protocol != "grpc" else GRPC_CHECK
        yield {"path": path, "headers": [{"name": ":method", "string_match": {"exact": asked}}]}


def _timeout(listener: Listener) -> HttpTimeout | GrpcTimeout | None:
    """Return the timeouts of a listener of HTTP or gRPC."""
    if listener.timeout is None or isinstance(listener.timeout.tcp, TcpTimeout):
        return None
    return listener.timeout.http or listener.timeout.http2 or listener.timeout.grpc
