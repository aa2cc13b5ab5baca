"""Whom a caller calls: the services, their ports, and the clusters that they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from routing.mesh.compile import clusters, routes
from routing.mesh.compile.clusters import Callee
from routing.mesh.compile.identity import Secured
from routing.mesh.compile.messages import Config
from routing.mesh.compile.policies import Policies
from routing.mesh.compile.proxy import Endpoint, Proxy
from routing.mesh.compile.splitting import Clusters
from routing.mesh.compile.tls import secret_source
from routing.mesh.compile.uncompilable import uncompilable
from routing.mesh.model.listening import Listener, PortMapping, TcpTimeout
from routing.mesh.model.resources import VirtualNode, VirtualRouter, VirtualService
from routing.mesh.model.routes import TcpRoute, WeightedTarget
from routing.mesh.model.shape import IpPreference
from routing.mesh.model.tls import ClientPolicy
from routing.mesh.snapshot import MeshSnapshot


class Called(msgspec.Struct, frozen=True):
    """A service under one of its ports, as one caller sees it."""

    service: VirtualService
    mapping: PortMapping
    main: bool
    """Whether this is the port that is meant when none is said: 80, or else the first."""
    routes: list[Config]
    """Of a service that speaks HTTP or gRPC."""
    connections: Config
    """Where connections go, of a service that speaks TCP."""
    timeout: TcpTimeout | None


class Directory:
    """The services that one proxy calls, and the clusters that this takes."""

    def __init__(
        self,
        snapshot: MeshSnapshot,
        proxy: Proxy,
        default: ClientPolicy | None,
        policies: Policies,
        security: Secured | None,
    ) -> None:
        self._snapshot = snapshot
        self._policies = policies
        self._security = security
        self._secrets = secret_source(proxy)
        self._proxy = proxy
        self._default = default
        self._clusters: dict[str, Config] = {}
        self.callees: dict[str, Callee] = {}
        """Those whose endpoints were given, by the name of their cluster."""

    @property
    def clusters(self) -> list[Config]:
        """The clusters of all that has been asked for."""
        return list(self._clusters.values())

    def called(self, name: str, policy: ClientPolicy | None) -> Iterator[Called]:
        """Yield a service under each of its ports; `policy` is that of the backend, if it has one."""
        service = self._snapshot.services[name]
        provider = service.spec.provider
        mappings = self._mappings(service)
        ports = [mapping.port for mapping in mappings]
        for mapping in mappings:
            main = 80 if 80 in ports else ports[0]
            targets = _Targets(self, policy, mapping.port, name)
            assert provider is not None
            if provider.virtual_node is not None:
                node = self._snapshot.nodes[provider.virtual_node.virtual_node_name]
                made, connections, timeout = targets.of_node(node, mapping)
            else:
                assert provider.virtual_router is not None
                router = self._snapshot.routers[provider.virtual_router.virtual_router_name]
                made, connections, timeout = targets.of_router(router, mapping)
            yield Called(service, mapping, mapping.port == main, made, connections, timeout)

    def cluster(self, node: VirtualNode, port: int, policy: ClientPolicy | None, of: str) -> str:
        """Return the name of the cluster of a node's port, which is made when it is first asked for."""
        listener = listener_of(node, port)
        chosen = policy or self._default
        tls = chosen.tls if chosen is not None else None
        if self._security is not None:
            tls = self._security.client_tls(node.path)
        callee = Callee(
            node,
            listener,
            tls,
            of if policy is not None else "",
            self._policies.of(node.path).locality or self._policies.of(self._snapshot.mesh.path).locality,
            self._proxy.standing,
        )
        if callee.cluster not in self._clusters:
            policy_of = self._policies.of(node.path)
            found = self._found(node)
            if found is not None:
                self.callees[callee.cluster] = callee
            self._clusters[callee.cluster] = clusters.egress(
                callee, found, self._preference, policy_of, self._secrets
            )
        return callee.cluster

    def only_port(self, name: str) -> int:
        """Return the port of a service that has one; a service that has none is never reached."""
        mappings = self._mappings(self._snapshot.services[name])
        return mappings[0].port if mappings else 0

    def _mappings(self, service: VirtualService) -> list[PortMapping]:
        provider = service.spec.provider
        if provider is None:
            return []
        if provider.virtual_node is not None:
            node = self._snapshot.nodes[provider.virtual_node.virtual_node_name]
            return [listener.port_mapping for listener in node.spec.listeners or ()]
        assert provider.virtual_router is not None
        router = self._snapshot.routers[provider.virtual_router.virtual_router_name]
        return [listener.port_mapping for listener in router.spec.listeners or ()]

    def node(self, name: str) -> VirtualNode:
        """Return a node by its name."""
        return self._snapshot.nodes[name]

    def tcp_routes(self, router: VirtualRouter, port: int) -> list[TcpRoute]:
        """Return the routes of TCP of a router for a port, the first to look at first."""
        found = [
            (
                1000 if route.spec.priority is None else route.spec.priority,
                route.route_name,
                route.spec.tcp_route,
            )
            for route in self._snapshot.routes(router.virtual_router_name)
            if route.spec.tcp_route is not None
            and (route.spec.tcp_route.match is None or route.spec.tcp_route.match.port in {None, port})
        ]
        return [route for _, _, route in sorted(found, key=lambda each: each[:2])]

    def http_routes(self, router: VirtualRouter, port: int, cluster: Clusters) -> list[Config]:
        """Return the routes of HTTP and gRPC of a router for a port."""
        found = self._snapshot.routes(router.virtual_router_name)
        return routes.of_router(found, port, cluster, self._policies)

    @property
    def _preference(self) -> IpPreference | None:
        discovery = self._snapshot.mesh.spec.service_discovery
        return discovery.ip_preference if discovery is not None else None

    def _found(self, node: VirtualNode) -> tuple[Endpoint, ...] | None:
        given: Mapping[str, tuple[Endpoint, ...]] = self._proxy.endpoints
        if node.virtual_node_name in given:
            return given[node.virtual_node_name]
        discovery = node.spec.service_discovery
        if discovery is not None and discovery.aws_cloud_map is not None:
            text = "AWS Cloud Map has not answered yet, or is not asked: give the endpoints of this node"
            raise uncompilable(node.path, "spec.serviceDiscovery.awsCloudMap", text)
        return None


class _Targets:
    """What a service under one port leads to."""

    def __init__(self, directory: Directory, policy: ClientPolicy | None, port: int, of: str) -> None:
        self._directory = directory
        self._policy = policy
        self._port = port
        self._of = of

    def _cluster(self, target: WeightedTarget) -> str:
        node = self._directory.node(target.virtual_node)
        listeners = node.spec.listeners or ()
        port = target.port or (listeners[0].port_mapping.port if len(listeners) == 1 else self._port)
        return self._directory.cluster(node, port, self._policy, self._of)

    def of_node(
        self, node: VirtualNode, mapping: PortMapping
    ) -> tuple[list[Config], Config, TcpTimeout | None]:
        cluster = self._directory.cluster(node, mapping.port, self._policy, self._of)
        if mapping.protocol == "tcp":
            return [], {"cluster": cluster}, None
        return routes.of_node(cluster, node.virtual_node_name), {}, None

    def of_router(
        self, router: VirtualRouter, mapping: PortMapping
    ) -> tuple[list[Config], Config, TcpTimeout | None]:
        if mapping.protocol != "tcp":
            return self._directory.http_routes(router, mapping.port, self._cluster), {}, None
        found = self._directory.tcp_routes(router, mapping.port)
        if not found:
            return [], {}, None
        return (
            [],
            routes.connections_towards(found[0].action.weighted_targets, self._cluster),
            found[0].timeout,
        )


def listener_of(node: VirtualNode, port: int) -> Listener:
    """Return the listener of a node under a port, which it has."""
    return next(each for each in node.spec.listeners or () if each.port_mapping.port == port)
