"""Who calls whom in a mesh: proxies, and between two of them the services by which one calls the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import msgspec

from routing.mesh.model.resources import GatewayRoute, VirtualService
from routing.mesh.snapshot import MeshSnapshot


class Call(msgspec.Struct, frozen=True, order=True):
    """Calls from one proxy to a node by a service; `share` of the service's routes, 1 being all."""

    caller: str
    callee: str
    service: str
    share: float


class Traffic(msgspec.Struct, frozen=True):
    """What was counted of calls: how many a second, which part of them failed, and 99 of 100 took at most."""

    per_s: float
    failed: float
    p99_ms: float | None = None


class Graph(msgspec.Struct, frozen=True):
    """A mesh as it is drawn: gateways and nodes by the end of their path, calls, and what was counted.

    Counted is between two proxies, by whichever services they call: (caller, callee).
    """

    mesh: str
    gateways: tuple[str, ...]
    nodes: tuple[str, ...]
    calls: tuple[Call, ...]
    traffic: Mapping[tuple[str, str], Traffic]
    seconds: float = 0
    """How long was counted; 0 if nothing was."""


def graph_of(snapshot: MeshSnapshot, traffic: Mapping[tuple[str, str], Traffic], seconds: float) -> Graph:
    """Return the graph of a mesh with what was counted."""
    leads_to = {name: dict(_targets(snapshot, each)) for name, each in snapshot.services.items()}
    calls = [
        Call(caller, f"virtualNode/{node}", service, share)
        for caller, service in sorted(set(_callers(snapshot)))
        for node, share in leads_to[service].items()
    ]
    return Graph(
        snapshot.mesh.mesh_name,
        tuple(f"virtualGateway/{name}" for name in sorted(snapshot.gateways)),
        tuple(f"virtualNode/{name}" for name in sorted(snapshot.nodes)),
        tuple(sorted(calls)),
        traffic,
        seconds,
    )


def _callers(snapshot: MeshSnapshot) -> Iterator[tuple[str, str]]:
    """Yield callers, each with a service that it calls."""
    for name, node in snapshot.nodes.items():
        for backend in node.spec.backends or ():
            if backend.virtual_service is not None:
                yield f"virtualNode/{name}", backend.virtual_service.virtual_service_name
    for name in snapshot.gateways:
        for route in snapshot.gateway_routes(name):
            yield f"virtualGateway/{name}", _service(route)


def _service(route: GatewayRoute) -> str:
    of_kind = route.spec.http_route or route.spec.http2_route or route.spec.grpc_route
    assert of_kind is not None
    return of_kind.action.target.virtual_service.virtual_service_name


def _targets(snapshot: MeshSnapshot, service: VirtualService) -> Iterator[tuple[str, float]]:
    """Yield the nodes that a service leads to, each with its share of the routes, all counting alike."""
    provider = service.spec.provider
    if provider is not None and provider.virtual_node is not None:
        yield provider.virtual_node.virtual_node_name, 1.0
    if provider is None or provider.virtual_router is None:
        return
    shares: defaultdict[str, float] = defaultdict(float)
    routes = snapshot.routes(provider.virtual_router.virtual_router_name)
    for route in routes:
        spec = route.spec
        of_kind = spec.http_route or spec.http2_route or spec.grpc_route or spec.tcp_route
        assert of_kind is not None
        targets = of_kind.action.weighted_targets
        whole = sum(each.weight for each in targets) or 1
        for each in targets:
            shares[each.virtual_node] += each.weight / whole / len(routes)
    yield from shares.items()
