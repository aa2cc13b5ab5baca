"""The meshes that are served, and what each proxy runs of them.

Endpoints come and go by the minute, and the rest by the day: where endpoints alone change, a proxy is not
compiled again, and only the endpoints of the callees that are concerned are made.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from routing.mesh.compile.clusters import Callee, assignment
from routing.mesh.compile.node import compiled
from routing.mesh.compile.proxy import Endpoint, Proxy
from routing.mesh.compile.uncompilable import Uncompilable
from routing.mesh.documents.reading import files_of, read
from routing.mesh.meshes import Meshes, meshes_of
from routing.mesh.model.resources import VirtualGateway, VirtualNode
from routing.mesh.problem import Severity
from routing.mesh.snapshot import MeshSnapshot
from routing.xds.resources import snapshot_of
from routing.xds.snapshot import Dangling, Snapshot

Endpoints: TypeAlias = Mapping[str, tuple[Endpoint, ...]]
"""Endpoints by the path of their node."""
ENDPOINTS_REMEMBERED: Final = 65_536
"""Of a file that is read again, in which most are as they were."""


class Unusable(Exception):
    """These resources cannot be served; the text says why."""


class Trust(msgspec.Struct, frozen=True):
    """The trust domain of the proxies, and whether the control plane issues their certificates."""

    domain: str = ""
    issued: bool = False


NO_TRUST: Final = Trust()


class Served(msgspec.Struct, frozen=True, weakref=True):
    """What a proxy runs, and the callees whose endpoints are in it, by the name of their cluster."""

    snapshot: Snapshot
    callees: Mapping[str, Callee]

    def with_endpoints(self, endpoints: Endpoints, changed: frozenset[str]) -> Served:
        """Return it after the endpoints of the nodes `changed` did."""
        made = [
            ClusterLoadAssignment(**assignment(callee, endpoints[callee.node.path]))
            for callee in self.callees.values()
            if callee.node.path in changed
        ]
        return Served(self.snapshot.with_endpoints(made), self.callees) if made else self


class Configurations:
    """The meshes by name, and the endpoints that were found for their nodes."""

    def __init__(
        self, meshes: Mapping[str, MeshSnapshot], endpoints: Endpoints, trust: Trust = NO_TRUST
    ) -> None:
        self.meshes = meshes
        self._trust = trust
        self.endpoints = endpoints
        self._by_mesh = {
            name: {
                node.virtual_node_name: endpoints[node.path]
                for node in mesh.nodes.values()
                if node.path in endpoints
            }
            for name, mesh in meshes.items()
        }

    def of(self, node: str, proxy: Proxy) -> Served:
        """Return what the proxy of a node runs; raises Unusable."""
        mesh, found = self._found(node)
        given = msgspec.structs.replace(
            proxy,
            endpoints=self._by_mesh[mesh.mesh.mesh_name],
            trust_domain=self._trust.domain,
            issued=self._trust.issued,
        )
        try:
            made = compiled(mesh, found, given)
            return Served(snapshot_of(made), made.callees)
        except Uncompilable as error:
            raise Unusable("; ".join(str(problem) for problem in error.problems)) from error
        except Dangling as error:
            raise Unusable(f"{node}: {error}") from error

    def _found(self, node: str) -> tuple[MeshSnapshot, VirtualNode | VirtualGateway]:
        for mesh in self.meshes.values():
            for kind, of in (("virtualNode", mesh.nodes), ("virtualGateway", mesh.gateways)):
                found = of.get(node.removeprefix(f"{mesh.mesh.path}/{kind}/"))
                if found is not None and found.path == node:
                    return mesh, found
        raise Unusable(f"there is no {node}")


def signature(*places: Path) -> str:
    """Return what changes when a file does, without reading it."""
    parts = []
    try:
        for path in (path for place in places for path in files_of(place)):
            stat = path.stat()
            parts.append(f"{path}:{stat.st_mtime_ns}:{stat.st_size}:{stat.st_ino}")
    except OSError as error:
        parts.append(str(error))
    return "|".join(parts)


def loaded(place: Path, parameters: Mapping[str, str]) -> Mapping[str, MeshSnapshot]:
    """Read a folder; raises Unusable where there is an error in it: all of it is served, or nothing."""
    try:
        return usable(meshes_of(read(place, parameters)))
    except OSError as error:
        raise Unusable(str(error)) from error


def usable(meshes: Meshes) -> Mapping[str, MeshSnapshot]:
    """Return meshes without an error; raises Unusable."""
    errors = [str(problem) for problem in meshes.problems if problem.severity is Severity.ERROR]
    if errors:
        raise Unusable("; ".join(errors))
    return meshes.snapshots


def found_in(file: Path, meshes: Mapping[str, MeshSnapshot]) -> Endpoints:
    """Return the endpoints of a file, whose nodes are paths, or names in every mesh; raises Unusable."""
    try:
        given = endpoints_in(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise Unusable(f"{file}: {error}") from error
    paths = [node for mesh in meshes.values() for node in mesh.nodes.values()]
    by_name = {node.path: given[node.virtual_node_name] for node in paths if node.virtual_node_name in given}
    return by_name | {node.path: given[node.path] for node in paths if node.path in given}


def endpoints_in(body: bytes) -> dict[str, tuple[Endpoint, ...]]:
    """Return endpoints by node; raises msgspec.DecodeError."""
    given = msgspec.json.decode(body, type=dict[str, list[str | _Placed]])
    return {
        node: tuple(_endpoint(each) if isinstance(each, str) else each.endpoint() for each in each_of)
        for node, each_of in given.items()
    }


class _Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint of which more is said than its address."""

    address: str
    region: str = ""
    zone: str = ""
    weight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1

    def endpoint(self) -> Endpoint:
        at = _endpoint(self.address)
        return Endpoint(at.host, at.port, region=self.region, zone=self.zone, weight=self.weight)


@functools.lru_cache(maxsize=ENDPOINTS_REMEMBERED)
def _endpoint(text: str) -> Endpoint:
    """Return an endpoint; raises msgspec.ValidationError for a name: Envoy takes addresses alone here."""
    host, separator, port = text.rpartition(":")
    if not (separator and port.isdecimal() and (":" not in host or host.startswith("["))):
        host, port = text, ""
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        return msgspec.convert({"host": host, "port": int(port) if port else None}, Endpoint)
    except ValueError as error:
        raise msgspec.ValidationError(f"{text!r} is not an IP address, or one with a port") from error
