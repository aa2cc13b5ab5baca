"""What one proxy shall run: resources by type and name, each with the version of its content.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol, "Resource Types".
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

PREFIX: Final = "type.googleapis.com/"
CLUSTERS: Final = PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS: Final = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENERS: Final = PREFIX + "envoy.config.listener.v3.Listener"
ROUTES: Final = PREFIX + "envoy.config.route.v3.RouteConfiguration"
SECRETS: Final = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
ORDER: Final = (CLUSTERS, SECRETS, ENDPOINTS, LISTENERS, ROUTES)
"""In which types are sent ("Eventual consistency considerations"); secrets before what warms with them."""
WHOLE: Final = frozenset({CLUSTERS, LISTENERS})
"""Of which a state of the world has every resource ("Deleting Resources"), and no name is a wildcard."""
VERSION_CHARACTERS: Final = 16


class Dangling(Exception):
    """These resources are no snapshot: one names another that is not there."""


class Resource(msgspec.Struct, frozen=True):
    """A resource as it is sent: `version` is the hash of `body`, a message as bytes."""

    name: str
    version: str
    body: bytes


Resources = Mapping[str, Resource]


class Snapshot:
    """The resources of one proxy by type and name, whose references all lead somewhere; raises Dangling."""

    def __init__(self, messages: Mapping[str, Iterable[Any]]) -> None:
        assert set(messages) <= set(ORDER)
        given = {kind: tuple(messages.get(kind, ())) for kind in ORDER}
        self._of = {kind: _resources(kind, given[kind]) for kind in ORDER}
        self.endpoints_of = MappingProxyType(
            {each.name: _service(each) for each in given[CLUSTERS] if each.type == Cluster.EDS}
        )
        self._follow(ENDPOINTS, {("cluster " + name, to) for name, to in self.endpoints_of.items()})
        for each in given[LISTENERS]:
            routes, clusters = _of_listener(each)
            self._follow(ROUTES, {("listener " + each.name, to) for to in routes})
            self._follow(CLUSTERS, {("listener " + each.name, to) for to in clusters})
        for each in given[ROUTES]:
            self._follow(CLUSTERS, {("routes " + each.name, to) for to in _of_routes(each)})

    def of(self, kind: str) -> Resources:
        """Return the resources of a type by name; none of a type that is not served."""
        return self._of.get(kind, {})

    def with_endpoints(self, messages: Iterable[Any]) -> Snapshot:
        """Return it with other endpoints of clusters that it has."""
        changed = _resources(ENDPOINTS, messages)
        assert set(changed) <= set(self._of[ENDPOINTS])
        return self._with(ENDPOINTS, {**self._of[ENDPOINTS], **changed})

    def with_secrets(self, messages: Iterable[Any]) -> Snapshot:
        """Return it with the secrets of one proxy."""
        return self._with(SECRETS, _resources(SECRETS, messages))

    def _with(self, kind: str, resources: Resources) -> Snapshot:
        made = copy.copy(self)
        made._of = {**self._of, kind: MappingProxyType(dict(resources))}
        return made

    def _follow(self, kind: str, references: set[tuple[str, str]]) -> None:
        for source, name in sorted(references):
            if name not in self._of[kind]:
                raise Dangling(f"{source} names {name}, which is no {kind.rpartition('.')[2]}")


def version_of(resources: Resources) -> str:
    """Return the version of resources together: equal exactly where they are."""
    text = "".join(f"{name}\0{each.version}\0" for name, each in sorted(resources.items()))
    return _hash(text.encode())


def _resources(kind: str, messages: Iterable[Any]) -> Resources:
    made: dict[str, Resource] = {}
    for each in messages:
        name = each.cluster_name if kind == ENDPOINTS else each.name
        if not name or name in made:
            raise Dangling(
                f"two resources of {kind.rpartition('.')[2]} are called {name!r}, or one by nothing"
            )
        body = each.SerializeToString(deterministic=True)
        made[name] = Resource(name, _hash(body), body)
    return MappingProxyType(made)


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:VERSION_CHARACTERS]


def _service(cluster: Any) -> str:
    return str(cluster.eds_cluster_config.service_name or cluster.name)


def _of_listener(listener: Any) -> tuple[set[str], set[str]]:
    """Return the names of routes, and of clusters, that a listener leads to."""
    routes: set[str] = set()
    clusters: set[str] = set()
    chains = [*listener.filter_chains, listener.default_filter_chain]
    for filter_ in (each for chain in chains for each in chain.filters):
        config = filter_.typed_config
        if config.Is(HttpConnectionManager.DESCRIPTOR):
            manager = HttpConnectionManager.FromString(config.value)
            if manager.HasField("rds"):
                routes.add(manager.rds.route_config_name)
            clusters |= _of_routes(manager.route_config)
        elif config.Is(TcpProxy.DESCRIPTOR):
            proxy = TcpProxy.FromString(config.value)
            clusters |= {each.name for each in proxy.weighted_clusters.clusters} | {proxy.cluster}
    return routes, clusters - {""}


def _of_routes(table: Any) -> set[str]:
    """Return the names of the clusters that routes lead to; a header may name any other."""
    found: set[str] = set()
    for action in (route.route for host in table.virtual_hosts for route in host.routes):
        found.add(action.cluster)
        found |= {each.name for each in action.weighted_clusters.clusters}
        found |= {each.cluster for each in action.request_mirror_policies}
    return found - {""}
