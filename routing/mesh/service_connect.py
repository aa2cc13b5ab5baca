"""A virtual node as Amazon ECS Service Connect can have it, and what is lost of it.

Source: Amazon ECS API, ServiceConnectConfiguration and PortMapping. It names services and balances over their
tasks; it retries and ejects as it sees fit, calls whoever is in its namespace, and has no routes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from routing.mesh.model.listening import Listener
from routing.mesh.model.resources import Route, VirtualNode, VirtualRouter, VirtualService
from routing.mesh.model.shape import Duration
from routing.mesh.problem import Problem, Severity
from routing.mesh.references import ROUTE_KINDS, WIRE
from routing.mesh.snapshot import MeshSnapshot

EVERYTHING: Final = "/"


class NoNamespace(Exception):
    """A node does not say its namespace of AWS Cloud Map, and nobody else does."""


class Exported(msgspec.Struct, frozen=True):
    """What `aws ecs create-service` and a container of the task definition take, and what is lost."""

    config: dict[str, Any]
    lost: tuple[Problem, ...]


class _Alias(msgspec.Struct, frozen=True, order=True):
    """A name and a port under which a listener of the node is called."""

    listener: int
    name: str
    port: int


def exported(snapshot: MeshSnapshot, node: VirtualNode, namespace: str) -> Exported:
    """Return a node's part of its ECS service; raises NoNamespace."""
    discovery = node.spec.service_discovery
    cloud_map = discovery.aws_cloud_map if discovery is not None else None
    named = namespace or (cloud_map.namespace_name if cloud_map is not None else "")
    if not named:
        raise NoNamespace(f"{node.path} has no namespace of AWS Cloud Map")
    aliases, lost = _aliases(snapshot, node)
    name = cloud_map.service_name if cloud_map is not None else node.virtual_node_name
    services = []
    mappings = []
    for listener in node.spec.listeners or ():
        port, protocol = listener.port_mapping.port, listener.port_mapping.protocol
        port_name = f"{protocol}-{port}"
        service: dict[str, Any] = {"portName": port_name, "discoveryName": name}
        if found := [{"port": each.port, "dnsName": each.name} for each in aliases if each.listener == port]:
            service["clientAliases"] = found
        if timeout := _timeout(listener):
            service["timeout"] = timeout
        services.append(service)
        mapping: dict[str, Any] = {"name": port_name, "containerPort": port, "protocol": "tcp"}
        mappings.append(mapping if protocol == "tcp" else {**mapping, "appProtocol": protocol})
        name = f"{node.virtual_node_name}-{port}"  # each discovery name once
    config: dict[str, Any] = {"enabled": True, "namespace": named}
    if services:
        config["services"] = services
    problems = [*lost, *_lost_of_node(snapshot, node), *_lost_of_policies(snapshot, node)]
    return Exported({"serviceConnectConfiguration": config, "portMappings": mappings}, tuple(problems))


def _aliases(snapshot: MeshSnapshot, node: VirtualNode) -> tuple[list[_Alias], list[Problem]]:
    """Return the names under which a node is called, and what is lost of the routes there."""
    found: set[_Alias] = set()
    lost: list[Problem] = []
    for service in snapshot.services.values():
        provider = service.spec.provider
        if provider is not None and provider.virtual_node is not None:
            if provider.virtual_node.virtual_node_name == node.virtual_node_name:
                ports = [listener.port_mapping.port for listener in node.spec.listeners or ()]
                found |= {_Alias(port, service.virtual_service_name, port) for port in ports}
        elif provider is not None and provider.virtual_router is not None:
            router = snapshot.routers[provider.virtual_router.virtual_router_name]
            made, problems = _routed(snapshot, node, service, router)
            found |= made
            lost += problems
    return sorted(found), lost


def _routed(
    snapshot: MeshSnapshot, node: VirtualNode, service: VirtualService, router: VirtualRouter
) -> tuple[set[_Alias], list[Problem]]:
    found: set[_Alias] = set()
    lost: list[Problem] = []
    listeners = [listener.port_mapping.port for listener in node.spec.listeners or ()]
    for route in snapshot.routes(router.virtual_router_name):
        (kind,) = (kind for kind in ROUTE_KINDS if getattr(route.spec, kind) is not None)
        of_kind = getattr(route.spec, kind)
        targets = [each for each in of_kind.action.weighted_targets if each.weight]
        mine = [each for each in targets if each.virtual_node == node.virtual_node_name]
        if not mine or not listeners:
            continue
        heaviest = max(targets, key=lambda each: each.weight)
        if heaviest.virtual_node == node.virtual_node_name:
            for listener in router.spec.listeners or ():
                port = listener.port_mapping.port
                meant = mine[0].port or (listeners[0] if len(listeners) == 1 else port)
                found.add(_Alias(meant, service.virtual_service_name, port))
        lost += _lost_of_route(route, kind, of_kind, len(targets), heaviest.virtual_node)
    return found, lost


def _timeout(listener: Listener) -> dict[str, int]:
    of = listener.timeout
    if of is None:
        return {}
    kind = of.http or of.http2 or of.grpc or of.tcp
    made = {}
    if kind is not None and kind.idle is not None:
        made["idleTimeoutSeconds"] = _seconds(kind.idle)
    request = getattr(kind, "per_request", None)
    if request is not None:
        made["perRequestTimeoutSeconds"] = _seconds(request)
    return made


def _seconds(duration: Duration) -> int:
    return math.ceil(duration.milliseconds / 1000)


def _lost_of_route(route: Route, kind: str, of_kind: Any, targets: int, heaviest: str) -> Iterator[Problem]:
    where = f"spec.{WIRE[kind]}"
    if targets > 1:
        text = f"weights are not kept: all goes to {heaviest}, which has the most"
        yield _lost(route.path, f"{where}.action.weightedTargets", text)
    if kind != "tcp_route" and not _is_everything(of_kind.match):
        yield _lost(route.path, f"{where}.match", "is not kept: all requests go the same way")
    if getattr(of_kind, "retry_policy", None) is not None:
        yield _lost(route.path, f"{where}.retryPolicy", "is not kept: Service Connect retries as it sees fit")
    if of_kind.timeout is not None:
        text = "is not kept: the time-outs are those of the node's listener"
        yield _lost(route.path, f"{where}.timeout", text)


def _is_everything(match: Any) -> bool:
    said = {
        name: getattr(match, name) for name in match.__struct_fields__ if getattr(match, name) is not None
    }
    return set(said) <= {"prefix", "port"} and said.get("prefix", EVERYTHING) == EVERYTHING


def _lost_of_node(snapshot: MeshSnapshot, node: VirtualNode) -> Iterator[Problem]:
    spec = node.spec
    for index, listener in enumerate(spec.listeners or ()):
        for member, wire in (
            ("connection_pool", "connectionPool"),
            ("health_check", "healthCheck"),
            ("outlier_detection", "outlierDetection"),
            ("tls", "tls"),
        ):
            if getattr(listener, member) is not None:
                field = f"spec.listeners[{index}].{wire}"
                yield _lost(node.path, field, "is not kept: Service Connect has its own")
    if spec.backends:
        text = "are not kept: every service of the namespace can be called"
        yield _lost(node.path, "spec.backends", text)
    if spec.backend_defaults is not None:
        yield _lost(
            node.path, "spec.backendDefaults", "is not kept: TLS is between services of AWS Private CA"
        )
    if spec.logging is not None:
        yield _lost(node.path, "spec.logging", "is not kept: accessLogConfiguration has other formats")
    filter_ = snapshot.mesh.spec.egress_filter
    if filter_ is not None and filter_.type == "DROP_ALL":
        text = "is not kept: what is in no namespace can be called too"
        yield _lost(snapshot.mesh.path, "spec.egressFilter", text)


def _lost_of_policies(snapshot: MeshSnapshot, node: VirtualNode) -> Iterator[Problem]:
    paths = {snapshot.mesh.path, node.path}
    for route in (route for name in snapshot.routers for route in snapshot.routes(name)):
        (of_kind,) = (found for kind in ROUTE_KINDS if (found := getattr(route.spec, kind)) is not None)
        if any(each.virtual_node == node.virtual_node_name for each in of_kind.action.weighted_targets):
            paths.add(route.path)
    for policy in snapshot.policies:
        if policy.target_path in paths:
            yield _lost(
                policy.path, "spec", f"is not kept: Service Connect has no policies ({policy.target_path})"
            )


def _lost(path: str, field: str, text: str) -> Problem:
    return Problem("", path, field, text, Severity.UNSUPPORTED)
