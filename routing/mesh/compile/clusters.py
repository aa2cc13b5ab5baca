"""Clusters: the endpoints of a node as a caller sees them, and a node's own application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from routing.mesh.compile import localities, named
from routing.mesh.compile.messages import Config, address, milliseconds, number, packed
from routing.mesh.compile.proxy import Address, Endpoint, Standing
from routing.mesh.compile.tls import client_tls, cluster_socket
from routing.mesh.model.listening import (
    HealthCheckPolicy,
    Listener,
    OutlierDetection,
    VirtualGatewayConnectionPool,
    VirtualNodeConnectionPool,
)
from routing.mesh.model.locality import Locality
from routing.mesh.model.policies import PolicySpec, RetryBudget
from routing.mesh.model.resources import VirtualNode
from routing.mesh.model.shape import IpPreference
from routing.mesh.model.tls import ClientPolicyTls

CONNECT_TIMEOUT_MS: Final = 5000
UNLIMITED: Final = 2**31 - 1
"""App Mesh's own: callers are not limited, the application is as its connection pool says."""
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
FAMILY: Final = {
    "IPv4_ONLY": "V4_ONLY",
    "IPv6_ONLY": "V6_ONLY",
    "IPv4_PREFERRED": "V4_PREFERRED",
    "IPv6_PREFERRED": "AUTO",
}
"""Envoy's AUTO looks for IPv6 addresses first."""


class Callee(msgspec.Struct, frozen=True):
    """A listener of a node, and the policy of whoever calls it."""

    node: VirtualNode
    listener: Listener
    policy: ClientPolicyTls | None = None
    of: str = ""
    """The backend that the policy is of, where it is not the caller's default."""
    locality: Locality | None = None
    caller: Standing = Standing()

    @property
    def cluster(self) -> str:
        """The name of the cluster."""
        mapping = self.listener.port_mapping
        node = f"{self.node.mesh_name}_{self.node.virtual_node_name}"
        name = f"cds_egress_{node}_{mapping.protocol}_{mapping.port}"
        return f"{name}_{self.of}" if self.of else name


def egress(
    callee: Callee,
    endpoints: Sequence[Endpoint] | None,
    preference: IpPreference | None,
    policy: PolicySpec,
    secrets: Config,
) -> Config:
    """Return the cluster of a callee, of whose node there is a `policy`; `secrets` is where those are.

    `endpoints` are those that somebody found for it; without them, its service discovery is DNS.
    `preference` is that of the mesh.
    """
    listener = callee.listener
    mapping = listener.port_mapping
    config: Config = _cluster(callee.cluster, mapping.protocol)
    config |= named.callee(callee.node.virtual_node_name)
    if endpoints is None:
        discovery = callee.node.spec.service_discovery
        assert discovery is not None
        assert discovery.dns is not None
        dns = discovery.dns
        config["type"] = "STRICT_DNS" if dns.response_type == "ENDPOINTS" else "LOGICAL_DNS"
        config["dns_lookup_family"] = FAMILY[dns.ip_preference or preference or "IPv4_PREFERRED"]
        endpoints = [Endpoint(dns.hostname)]
    else:
        config["ignore_health_on_host_removal"] = True  # what is gone is gone, however well it answers
    config["load_assignment"] = assignment(callee, endpoints)
    config["circuit_breakers"] = breakers(None, policy.retry_budget)
    if listener.outlier_detection is not None:
        config["outlier_detection"] = ejection(listener.outlier_detection)
    if listener.health_check is not None:
        config["health_checks"] = [check(listener.health_check)]
    tls = client_tls(callee.policy, listener)
    if tls is not None:
        config["transport_socket"] = cluster_socket(tls, mapping.protocol, secrets)
    return config


def assignment(callee: Callee, endpoints: Sequence[Endpoint]) -> Config:
    """Return the endpoints of a callee."""
    port = callee.listener.port_mapping.port
    health = callee.listener.health_check
    made: list[localities.Host] = []
    for each in endpoints:
        endpoint: Config = {"address": address(each.host, each.port or port)}
        if health is not None and health.port is not None and health.port != port:
            endpoint["health_check_config"] = {"port_value": health.port}
        host: Config = {"endpoint": endpoint}
        if each.weight != 1:
            host["load_balancing_weight"] = number(each.weight)
        made.append((each, host))
    return {"cluster_name": callee.cluster, **localities.groups(made, callee.caller, callee.locality)}


def local(name: str, protocol: str, at: Address, pool: VirtualNodeConnectionPool | None) -> Config:
    """Return the cluster of a node's own application."""
    config = _cluster(name, protocol)
    config["load_assignment"] = {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(at.host, at.port)}}]}],
    }
    config["circuit_breakers"] = breakers(pool)
    return config


def inside(name: str, protocol: str, listener: str, pool: VirtualGatewayConnectionPool | None) -> Config:
    """Return the cluster that is another listener of the same proxy."""
    config = _cluster(name, protocol)
    at = {"envoy_internal_address": {"server_listener_name": listener}}
    config["load_assignment"] = {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at}}]}],
    }
    config["circuit_breakers"] = breakers(pool)
    return config


def anywhere(name: str) -> Config:
    """Return the cluster of wherever a redirected connection was going."""
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "connect_timeout": milliseconds(CONNECT_TIMEOUT_MS),
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": breakers(None),
    }


def _cluster(name: str, protocol: str) -> Config:
    config: Config = {"name": name, "type": "STATIC", "connect_timeout": milliseconds(CONNECT_TIMEOUT_MS)}
    if protocol != "tcp":
        spoken = "http_protocol_options" if protocol == "http" else "http2_protocol_options"
        options = packed(HttpProtocolOptions, {"explicit_http_config": {spoken: {}}})
        config["typed_extension_protocol_options"] = {HTTP_OPTIONS: options}
    return config


def breakers(
    pool: VirtualNodeConnectionPool | VirtualGatewayConnectionPool | None, budget: RetryBudget | None = None
) -> Config:
    """Return circuit breakers: what neither the pool nor the budget of retries limits is not limited."""
    connections = pending = requests = UNLIMITED
    if pool is not None and pool.http is not None:
        connections = pool.http.max_connections
        pending = pool.http.max_pending_requests or UNLIMITED
    if pool is not None and (multiplexed := pool.http2 or pool.grpc) is not None:
        requests = multiplexed.max_requests
    if isinstance(pool, VirtualNodeConnectionPool) and pool.tcp is not None:
        connections = pool.tcp.max_connections
    threshold: Config = {
        "max_connections": number(connections),
        "max_pending_requests": number(pending),
        "max_requests": number(requests),
        "max_retries": number(UNLIMITED),
    }
    if budget is not None:
        threshold["retry_budget"] = {
            "budget_percent": {"value": budget.percent},
            "min_retry_concurrency": number(budget.min_retries),
        }
    return {"thresholds": [threshold]}


def ejection(terms: OutlierDetection) -> Config:
    """Return outlier detection as App Mesh had it: by errors in a row alone, and at least one endpoint."""
    return {
        "consecutive_5xx": number(terms.max_server_errors),
        "enforcing_consecutive_5xx": number(100),
        "enforcing_consecutive_gateway_failure": number(0),
        "enforcing_success_rate": number(0),
        "interval": milliseconds(max(terms.interval.milliseconds, 1)),
        "base_ejection_time": milliseconds(max(terms.base_ejection_duration.milliseconds, 1)),
        "max_ejection_time": milliseconds(max(terms.base_ejection_duration.milliseconds, 300_000)),
        "max_ejection_percent": number(terms.max_ejection_percent),
        "always_eject_one_host": {"value": True},
    }


def check(policy: HealthCheckPolicy) -> Config:
    """Return an active health check, as often without traffic as with it."""
    config: Config = {
        "timeout": milliseconds(policy.timeout_millis),
        "interval": milliseconds(policy.interval_millis),
        "no_traffic_interval": milliseconds(policy.interval_millis),
        "healthy_threshold": number(policy.healthy_threshold),
        "unhealthy_threshold": number(policy.unhealthy_threshold),
    }
    match policy.protocol:
        case "tcp":
            config["tcp_health_check"] = {}
        case "grpc":
            config["grpc_health_check"] = {}
        case protocol:
            codec = "HTTP2" if protocol == "http2" else "HTTP1"
            config["http_health_check"] = {"path": policy.path or "/", "codec_client_type": codec}
    return config
