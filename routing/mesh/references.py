"""Whether every reference of a mesh leads somewhere, and what it leads to can be meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from routing.mesh.model.policies import OF_REQUESTS, TARGETS, Policy
from routing.mesh.model.resources import (
    GatewayRoute,
    Mesh,
    Resource,
    Route,
    VirtualGateway,
    VirtualNode,
    VirtualRouter,
    VirtualService,
)
from routing.mesh.model.routes import WeightedTarget
from routing.mesh.policed import unclear, uncounted, unseen
from routing.mesh.problem import Problem, Severity

ROUTE_KINDS: Final = ("http_route", "http2_route", "grpc_route", "tcp_route")
WIRE: Final = {
    "http_route": "httpRoute",
    "http2_route": "http2Route",
    "grpc_route": "grpcRoute",
    "tcp_route": "tcpRoute",
}
Fault = tuple[str, str] | tuple[str, str, Severity]


def broken(resources: Sequence[Resource]) -> Iterator[Problem]:
    """Yield what leads nowhere, or cannot be meant, of the resources of one mesh."""
    known = {each.path: each for each in resources}
    meshes = [each for each in resources if isinstance(each, Mesh)]
    if len(meshes) != 1:
        named = ", ".join(sorted(mesh.mesh_name for mesh in meshes)) or "none"
        yield Problem("", "", "", f"a snapshot is of exactly one mesh, not {named}")
        return
    for each in resources:
        for field, text, *severity in _faults(each, known):
            yield Problem("", each.path, field, text, severity[0] if severity else Severity.ERROR)
    policies = [each for each in resources if isinstance(each, Policy)]
    yield from _said_twice(policies)
    yield from uncounted(policies)


def _faults(resource: Resource, known: dict[str, Resource]) -> Iterable[Fault]:
    mesh = f"mesh/{resource.mesh_name}"
    if mesh not in known:
        return [("meshName", f"there is no {mesh}")]
    match resource:
        case VirtualService():
            return _service(resource, known)
        case VirtualNode():
            return _node(resource, known)
        case Route():
            return _route(resource, known)
        case GatewayRoute():
            return _gateway_route(resource, known)
        case VirtualRouter():
            return _ports([listener.port_mapping.port for listener in resource.spec.listeners or ()])
        case VirtualGateway():
            return _ports([listener.port_mapping.port for listener in resource.spec.listeners])
        case Policy():
            return _policy(resource, known)
        case _:
            return []


def _ports(ports: list[int]) -> Iterator[Fault]:
    for index, port in enumerate(ports):
        if port in ports[:index]:
            yield f"spec.listeners[{index}].portMapping.port", f"another listener has port {port}"


def _service(service: VirtualService, known: dict[str, Resource]) -> Iterator[Fault]:
    mesh = f"mesh/{service.mesh_name}"
    provider = service.spec.provider
    if provider is None:
        yield "spec.provider", "is not set: calls of this service fail", Severity.WARNING
    elif provider.virtual_node is not None:
        path = f"{mesh}/virtualNode/{provider.virtual_node.virtual_node_name}"
        yield from _callable("spec.provider.virtualNode.virtualNodeName", path, None, known)
    elif provider.virtual_router is not None:
        path = f"{mesh}/virtualRouter/{provider.virtual_router.virtual_router_name}"
        router = known.get(path)
        if router is None:
            yield "spec.provider.virtualRouter.virtualRouterName", f"there is no {path}"
        elif isinstance(router, VirtualRouter) and not router.spec.listeners:
            yield (
                "spec.provider.virtualRouter.virtualRouterName",
                f"{path} has no listener: it cannot be called",
            )


def _callable(field: str, path: str, port: int | None, known: dict[str, Resource]) -> Iterator[Fault]:
    """Yield why a node cannot be called, under `port` if one is given."""
    node = known.get(path)
    if not isinstance(node, VirtualNode):
        yield field, f"there is no {path}"
        return
    if node.spec.service_discovery is None:
        yield field, f"{path} has no service discovery: its endpoints cannot be found"
    ports = [listener.port_mapping.port for listener in node.spec.listeners or ()]
    if not ports:
        yield field, f"{path} has no listener: it cannot be called"
    elif port is not None and port not in ports:
        yield field, f"{path} does not listen on port {port}, but on {', '.join(map(str, ports))}"


def _node(node: VirtualNode, known: dict[str, Resource]) -> Iterator[Fault]:
    named: set[str] = set()
    for index, backend in enumerate(node.spec.backends or ()):
        assert backend.virtual_service is not None
        name = backend.virtual_service.virtual_service_name
        field = f"spec.backends[{index}].virtualService.virtualServiceName"
        path = f"mesh/{node.mesh_name}/virtualService/{name}"
        if path not in known:
            yield field, f"there is no {path}"
        if name in named:
            yield field, f"{name} is a backend twice"
        named.add(name)
    yield from _ports([listener.port_mapping.port for listener in node.spec.listeners or ()])


def _route(route: Route, known: dict[str, Resource]) -> Iterator[Fault]:
    path = f"mesh/{route.mesh_name}/virtualRouter/{route.virtual_router_name}"
    router = known.get(path)
    if not isinstance(router, VirtualRouter):
        yield "virtualRouterName", f"there is no {path}"
        return
    (kind,) = (kind for kind in ROUTE_KINDS if getattr(route.spec, kind) is not None)
    of_kind = getattr(route.spec, kind)
    where = f"spec.{WIRE[kind]}"
    listeners = {one.port_mapping.port: one.port_mapping.protocol for one in router.spec.listeners or ()}
    port = of_kind.match.port if of_kind.match is not None else None
    if port is not None and port not in listeners:
        yield f"{where}.match.port", f"{path} does not listen on port {port}"
    reached = {protocol for number, protocol in listeners.items() if port in {None, number}}
    if reached and (kind == "tcp_route") not in {protocol == "tcp" for protocol in reached}:
        said = ", ".join(sorted(reached))
        yield where, f"{path} listens for {said}: this route is never reached", Severity.WARNING
    targets: Sequence[WeightedTarget] = of_kind.action.weighted_targets
    for index, target in enumerate(targets):
        node = f"mesh/{route.mesh_name}/virtualNode/{target.virtual_node}"
        field = f"{where}.action.weightedTargets[{index}]"
        yield from _callable(f"{field}.virtualNode", node, target.port, known)
        if isinstance(found := known.get(node), VirtualNode) and target.port is None:
            yield from _which_port(f"{field}.port", found, list(listeners))
    if sum(target.weight for target in targets) == 0:
        yield f"{where}.action.weightedTargets", "no target has a weight over 0"
    if kind == "grpc_route" and of_kind.match.method_name is not None and of_kind.match.service_name is None:
        yield f"{where}.match.methodName", "needs serviceName"
    prefix = getattr(of_kind.match, "prefix", None)
    if prefix is not None and not prefix.startswith("/"):
        yield f"{where}.match.prefix", "does not begin with /"


def _which_port(field: str, node: VirtualNode, router_ports: list[int]) -> Iterator[Fault]:
    """Yield what is unclear without a port, which means the node's only one, or that of the router."""
    ports = [listener.port_mapping.port for listener in node.spec.listeners or ()]
    if len(ports) > 1 and not set(router_ports) <= set(ports):
        yield field, f"is needed: {node.path} listens on {', '.join(map(str, ports))}"


def _gateway_route(route: GatewayRoute, known: dict[str, Resource]) -> Iterator[Fault]:
    mesh = f"mesh/{route.mesh_name}"
    path = f"{mesh}/virtualGateway/{route.virtual_gateway_name}"
    gateway = known.get(path)
    (kind,) = (kind for kind in ROUTE_KINDS[:3] if getattr(route.spec, kind) is not None)
    of_kind = getattr(route.spec, kind)
    where = f"spec.{WIRE[kind]}"
    if not isinstance(gateway, VirtualGateway):
        yield "virtualGatewayName", f"there is no {path}"
    elif (port := of_kind.match.port) is not None and port not in {
        listener.port_mapping.port for listener in gateway.spec.listeners
    }:
        yield f"{where}.match.port", f"{path} does not listen on port {port}"
    target = of_kind.action.target
    name = target.virtual_service.virtual_service_name
    service = known.get(f"{mesh}/virtualService/{name}")
    field = f"{where}.action.target"
    if not isinstance(service, VirtualService):
        yield f"{field}.virtualService.virtualServiceName", f"there is no {mesh}/virtualService/{name}"
    else:
        yield from _service_port(f"{field}.port", service, target.port, known)
    prefix = getattr(of_kind.match, "prefix", None)
    if prefix is not None and not prefix.startswith("/"):
        yield f"{where}.match.prefix", "does not begin with /"
    if kind != "grpc_route" and (rewrite := of_kind.action.rewrite) is not None:
        if rewrite.prefix is not None and of_kind.match.path is not None:
            yield f"{where}.action.rewrite.prefix", "needs a match by prefix, not by path"
        if rewrite.path is not None and of_kind.match.path is None:
            yield f"{where}.action.rewrite.path", "needs a match by path"


def _service_port(
    field: str, service: VirtualService, port: int | None, known: dict[str, Resource]
) -> Iterator[Fault]:
    ports = service_ports(service, known)
    if port is not None and ports and port not in ports:
        yield field, f"{service.path} is not called on port {port}, but on {', '.join(map(str, ports))}"
    if port is None and len(ports) > 1:
        yield field, f"is needed: {service.path} is called on {', '.join(map(str, ports))}"


def service_ports(service: VirtualService, known: dict[str, Resource]) -> list[int]:
    """Return the ports under which a service is called: those of its router or node."""
    provider = service.spec.provider
    found: Resource | None = None
    if provider is not None and provider.virtual_router is not None:
        found = known.get(
            f"mesh/{service.mesh_name}/virtualRouter/{provider.virtual_router.virtual_router_name}"
        )
    elif provider is not None and provider.virtual_node is not None:
        found = known.get(f"mesh/{service.mesh_name}/virtualNode/{provider.virtual_node.virtual_node_name}")
    if isinstance(found, (VirtualRouter, VirtualNode)):
        return [listener.port_mapping.port for listener in found.spec.listeners or ()]
    return []


def _policy(policy: Policy, known: dict[str, Resource]) -> Iterator[Fault]:
    if policy.target_path not in known:
        yield "spec.target", f"there is no {policy.target_path}"
    if policy.spec.security is not None:
        for each in known.values():
            if isinstance(each, VirtualNode | VirtualGateway) and (field := _own_tls(each)):
                yield "spec.security", f"{each.path} has TLS of its own, {field}: one of them has to go"
    for member in policy.members():
        if policy.target_kind not in TARGETS[member]:
            yield (
                f"spec.{_wire(policy, member)}",
                f"is for {' and '.join(TARGETS[member])}, not {policy.target_kind}",
            )
        elif member in OF_REQUESTS and (text := unseen(known.get(policy.target_path))):
            yield f"spec.{_wire(policy, member)}", text
    if policy.spec.mirror is not None:
        mirror = policy.spec.mirror
        path = f"mesh/{policy.mesh_name}/virtualNode/{mirror.virtual_node}"
        yield from _callable("spec.mirror.virtualNode", path, mirror.port, known)
    yield from unclear(policy, known)


def _own_tls(node: VirtualNode | VirtualGateway) -> str:
    """Return the field by which a node, or a gateway where it calls, has TLS of its own; or nothing."""
    defaults = node.spec.backend_defaults
    if defaults is not None and defaults.client_policy is not None and defaults.client_policy.tls is not None:
        return "spec.backendDefaults.clientPolicy.tls"
    if isinstance(node, VirtualGateway):
        return ""
    for index, listener in enumerate(node.spec.listeners or ()):
        if listener.tls is not None and listener.tls.mode != "DISABLED":
            return f"spec.listeners[{index}].tls"
    for index, backend in enumerate(node.spec.backends or ()):
        service = backend.virtual_service
        if (
            service is not None
            and service.client_policy is not None
            and service.client_policy.tls is not None
        ):
            return f"spec.backends[{index}].virtualService.clientPolicy.tls"
    return ""


def _said_twice(policies: Sequence[Policy]) -> Iterator[Problem]:
    """Yield members that two policies set for one target."""
    first: dict[tuple[str, str], str] = {}
    for each in policies:
        for member in each.members():
            other = first.setdefault((each.target_path, member), each.path)
            if other != each.path:
                text = f"is set for {each.target_path} by {other} too"
                yield Problem("", each.path, f"spec.{_wire(each, member)}", text)


def _wire(policy: Policy, member: str) -> str:
    return next(each.encode_name for each in msgspec.structs.fields(policy.spec) if each.name == member)
