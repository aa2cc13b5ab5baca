"""A mesh whole and consistent: what everything else is computed from.

A snapshot is a value. A change makes another one, and whoever holds the old one is not disturbed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeVar

from routing.mesh.callers import Callers, callers_of
from routing.mesh.model.policies import Policy, PolicySpec
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
from routing.mesh.problem import Problem, Severity
from routing.mesh.references import broken

ResourceT = TypeVar("ResourceT", bound=Resource)
NOTHING: Final = PolicySpec()


class Inconsistent(Exception):
    """These resources are no mesh; `problems` says why, all of it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(
            "; ".join(f"{problem.resource} {problem.field}: {problem.text}" for problem in problems)
        )
        self.problems = problems


class MeshSnapshot:
    """The resources of one mesh by their names; raises Inconsistent where a reference leads nowhere."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        given = tuple(resources)
        problems = [*_doubles(given), *broken(given)]
        errors = [problem for problem in problems if problem.severity is Severity.ERROR]
        if errors:
            raise Inconsistent(errors)
        (self.mesh,) = (each for each in given if isinstance(each, Mesh))
        self.resources = given
        self.services = _named(given, VirtualService, "virtual_service_name")
        self.nodes = _named(given, VirtualNode, "virtual_node_name")
        self.routers = _named(given, VirtualRouter, "virtual_router_name")
        self.gateways = _named(given, VirtualGateway, "virtual_gateway_name")
        routes: defaultdict[str, list[Route]] = defaultdict(list)
        gateway_routes: defaultdict[str, list[GatewayRoute]] = defaultdict(list)
        for each in given:
            if isinstance(each, Route):
                routes[each.virtual_router_name].append(each)
            elif isinstance(each, GatewayRoute):
                gateway_routes[each.virtual_gateway_name].append(each)
        self._routes = {name: tuple(of) for name, of in routes.items()}
        self._gateway_routes = {name: tuple(of) for name, of in gateway_routes.items()}
        self.policies = tuple(each for each in given if isinstance(each, Policy))
        self._policies = _policies(self.policies)

    @cached_property
    def callers(self) -> Callers:
        """Who may call each node."""
        return callers_of(self.resources)

    def routes(self, router: str) -> tuple[Route, ...]:
        """Return the routes of a router."""
        return self._routes.get(router, ())

    def gateway_routes(self, gateway: str) -> tuple[GatewayRoute, ...]:
        """Return the routes of a gateway."""
        return self._gateway_routes.get(gateway, ())

    def policy(self, path: str) -> PolicySpec:
        """Return what all policies say of a resource, or of the mesh."""
        return self._policies.get(path, NOTHING)


def _named(resources: Iterable[Resource], kind: type[ResourceT], name: str) -> Mapping[str, ResourceT]:
    return MappingProxyType({getattr(each, name): each for each in resources if isinstance(each, kind)})


def _policies(policies: Iterable[Policy]) -> dict[str, PolicySpec]:
    """Return the members of the policies of each target, which no two of them set."""
    members: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for each in policies:
        members[each.target_path] |= {name: getattr(each.spec, name) for name in each.members()}
    return {path: PolicySpec(**of) for path, of in members.items()}


def _doubles(resources: Iterable[Resource]) -> Iterable[Problem]:
    seen: set[str] = set()
    for each in resources:
        if each.path in seen:
            yield Problem("", each.path, "", "is there twice")
        seen.add(each.path)
