"""Who may call a node: the nodes whose backends lead to it, and the gateways whose routes do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from routing.mesh.model.policies import Policy
from routing.mesh.model.resources import (
    GatewayRoute,
    Resource,
    Route,
    VirtualNode,
    VirtualService,
)

Callers = Mapping[str, frozenset[str]]
"""Paths of callers by the path of a node; a node that nobody calls is not in it."""


def callers_of(resources: Iterable[Resource]) -> Callers:
    """Return who may call each node."""
    given = tuple(resources)
    by_router: defaultdict[str, set[str]] = defaultdict(set)
    for each in given:
        if isinstance(each, Route):
            by_router[each.virtual_router_name] |= set(_targets(each))
        elif isinstance(each, Policy) and each.spec.mirror is not None:
            by_router[each.spec.target.split("/")[1]].add(each.spec.mirror.virtual_node)
    leads_to = {
        each.virtual_service_name: _reached(each, by_router)
        for each in given
        if isinstance(each, VirtualService)
    }
    found: defaultdict[str, set[str]] = defaultdict(set)
    for each in given:
        for caller, service in _calls(each):
            for node in leads_to.get(service, ()):
                found[f"mesh/{each.mesh_name}/virtualNode/{node}"].add(caller)
    return {node: frozenset(callers) for node, callers in found.items()}


def _calls(resource: Resource) -> Iterator[tuple[str, str]]:
    """Yield a caller's path and the service that it calls."""
    if isinstance(resource, VirtualNode):
        for backend in resource.spec.backends or ():
            if backend.virtual_service is not None:
                yield resource.path, backend.virtual_service.virtual_service_name
    elif isinstance(resource, GatewayRoute):
        spec = resource.spec
        of_kind = spec.http_route or spec.http2_route or spec.grpc_route
        assert of_kind is not None
        gateway = f"mesh/{resource.mesh_name}/virtualGateway/{resource.virtual_gateway_name}"
        yield gateway, of_kind.action.target.virtual_service.virtual_service_name


def _targets(route: Route) -> Iterator[str]:
    spec = route.spec
    of_kind = spec.http_route or spec.http2_route or spec.grpc_route or spec.tcp_route
    assert of_kind is not None
    for target in of_kind.action.weighted_targets:
        yield target.virtual_node


def _reached(service: VirtualService, by_router: Mapping[str, set[str]]) -> set[str]:
    provider = service.spec.provider
    if provider is not None and provider.virtual_node is not None:
        return {provider.virtual_node.virtual_node_name}
    if provider is not None and provider.virtual_router is not None:
        return by_router.get(provider.virtual_router.virtual_router_name, set())
    return set()
