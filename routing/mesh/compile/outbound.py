"""The listener through which a node calls its backends."""

from __future__ import annotations

from typing import Final

from routing.mesh.compile import clusters, filters, named
from routing.mesh.compile.called import Called, Directory
from routing.mesh.compile.messages import Config, address, milliseconds, number
from routing.mesh.compile.observing import Observed
from routing.mesh.compile.policies import Policies
from routing.mesh.compile.proxy import LOOPBACK, Proxy
from routing.mesh.compile.uncompilable import uncompilable
from routing.mesh.model.resources import VirtualNode

ANYWHERE: Final = "anywhere"
INSPECTION_MS: Final = 5000
PLAIN_HTTP: Final = {
    "application_protocols": ["http/1.0", "http/1.1", "h2c"],
    "transport_protocol": "raw_buffer",
}


def outbound(
    node: VirtualNode, proxy: Proxy, directory: Directory, policies: Policies, *, allow_all: bool
) -> tuple[list[Config], list[Config]]:
    """Return the listeners and the clusters of what goes out.

    A request goes to the backend that its Host names, a connection to the one that speaks TCP on the port
    that it was for; anything else goes where it was going (`allow_all`), or hears 404 or a closed connection.
    """
    observed = policies.observed
    called = [
        each
        for backend in node.spec.backends or ()
        if (service := backend.virtual_service) is not None
        for each in directory.called(service.virtual_service_name, service.client_policy)
    ]
    hosts = [host(each) for each in called if each.mapping.protocol != "tcp"]
    if allow_all:
        action = {"cluster": ANYWHERE, "timeout": milliseconds(0)}
        everything = {"name": ANYWHERE, "match": {"prefix": "/"}, "route": action, **named.route(ANYWHERE)}
        hosts.append({"name": ANYWHERE, "domains": ["*"], "routes": [everything]})
    connections = [each for each in called if each.mapping.protocol == "tcp" and each.connections]
    redirected = [each for each in connections if each.service.virtual_service_name not in proxy.tcp_backends]
    _check_ports(node, redirected, [each for each in called if each.mapping.protocol != "tcp"])
    ports = [each.mapping.port for each in redirected]
    name = f"rds_egress_{node.mesh_name}_{node.virtual_node_name}"
    table = {"name": name, "virtual_hosts": hosts}
    manager = filters.manager(name, table, observed, before=policies.filters(table))
    listener: Config = {
        "name": f"lds_egress_{LOOPBACK}_{proxy.egress_port}",
        "address": address(LOOPBACK, proxy.egress_port),
        "traffic_direction": "OUTBOUND",
        "listener_filters": [
            filters.original_destination(),
            filters.tls_inspector(ports),
            filters.http_inspector(ports),
        ],
        "listener_filters_timeout": milliseconds(INSPECTION_MS),
        "continue_on_listener_filters_timeout": True,
        "filter_chains": [
            *[_chain(observed, each, {"destination_port": number(each.mapping.port)}) for each in redirected],
            {"name": name, "filter_chain_match": PLAIN_HTTP, "filters": [manager]},
        ],
    }
    made: list[Config] = []
    if allow_all:
        passed = filters.tcp_proxy(ANYWHERE, {"cluster": ANYWHERE}, None, observed)
        listener["default_filter_chain"] = {"name": ANYWHERE, "filters": [passed]}
        made.append(clusters.anywhere(ANYWHERE))
    return [listener, *_own_listeners(observed, proxy, connections)], made


def host(called: Called) -> Config:
    """Return the virtual host of a service under one of its ports."""
    name, port = called.service.virtual_service_name, called.mapping.port
    domains = [f"{name}:{port}", name] if called.main else [f"{name}:{port}"]
    return {"name": f"{name}:{port}", "domains": domains, "routes": called.routes}


def _chain(observed: Observed, called: Called, match: Config) -> Config:
    name = f"{called.service.virtual_service_name}:{called.mapping.port}"
    one = filters.tcp_proxy(name, called.connections, called.timeout, observed)
    return {"name": name, "filter_chain_match": match, "filters": [one]}


def _own_listeners(observed: Observed, proxy: Proxy, connections: list[Called]) -> list[Config]:
    """Return a listener for each service of TCP that has one of its own."""
    made = []
    for each in connections:
        at = proxy.tcp_backends.get(each.service.virtual_service_name)
        if at is not None:
            name = f"lds_egress_{at.host}_{at.port}"
            chains = [_chain(observed, each, {})]
            made.append(
                {
                    "name": name,
                    "address": address(at.host, at.port),
                    "traffic_direction": "OUTBOUND",
                    "filter_chains": chains,
                }
            )
    return made


def _check_ports(node: VirtualNode, connections: list[Called], requests: list[Called]) -> None:
    """Refuse two backends that a connection's port does not tell apart."""
    seen: dict[int, str] = {each.mapping.port: each.service.virtual_service_name for each in requests}
    for each in connections:
        name, port = each.service.virtual_service_name, each.mapping.port
        if port in seen:
            text = (
                f"{name} speaks TCP on port {port}, as does {seen[port]}: give {name} a listener of its own"
            )
            raise uncompilable(node.path, "spec.backends", text)
        seen[port] = name
