"""From what a proxy runs to resources that can be changed one by one: routes and endpoints on their own."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.config_source_pb2 import ConfigSource
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from routing.mesh.compile.messages import Config, Message
from routing.mesh.compile.node import Compiled
from routing.mesh.compile.tls import SDS_CLUSTER
from routing.xds.snapshot import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES, Snapshot

AGGREGATED: Final[Config] = {"ads": {}, "resource_api_version": "V3"}


def snapshot_of(made: Compiled) -> Snapshot:
    """Return a compiled proxy as a snapshot; raises Dangling.

    The cluster of a Secret Discovery Service is the bootstrap's. Names for DNS stay in their cluster.
    """
    routes: dict[str, Message] = {}
    endpoints: list[Message] = []
    listeners = [_listener(each, routes) for each in made.listeners]
    clusters = [_cluster(each, endpoints) for each in made.clusters if each.name != SDS_CLUSTER]
    return Snapshot({LISTENERS: listeners, ROUTES: routes.values(), CLUSTERS: clusters, ENDPOINTS: endpoints})


def _listener(given: Message, routes: dict[str, Message]) -> Message:
    listener = Listener.FromString(given.SerializeToString())
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        for filter_ in chain.filters:
            if filter_.typed_config.Is(HttpConnectionManager.DESCRIPTOR):
                _manager(filter_.typed_config, routes)
    return listener


def _manager(config: Any, routes: dict[str, Message]) -> None:
    manager = HttpConnectionManager.FromString(config.value)
    table = RouteConfiguration.FromString(manager.route_config.SerializeToString())
    if routes.setdefault(table.name, table) != table:
        return  # another of the same name: this one stays where it is
    manager.rds.route_config_name = table.name
    manager.rds.config_source.CopyFrom(ConfigSource(**AGGREGATED))
    config.value = manager.SerializeToString(deterministic=True)


def _cluster(given: Message, endpoints: list[Message]) -> Message:
    hosts = [host for each in given.load_assignment.endpoints for host in each.lb_endpoints]
    if given.type != Cluster.STATIC or not all(
        host.endpoint.address.HasField("socket_address") for host in hosts
    ):
        return given
    cluster = Cluster.FromString(given.SerializeToString())
    endpoints.append(ClusterLoadAssignment.FromString(given.load_assignment.SerializeToString()))
    cluster.ClearField("load_assignment")
    cluster.type = Cluster.EDS
    cluster.eds_cluster_config.eds_config.CopyFrom(ConfigSource(**AGGREGATED))
    return cluster
