"""The meshes that are served: the last good ones of a folder, and what each proxy runs of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from routing.mesh.compile.node import compiled
from routing.mesh.compile.proxy import Endpoint, Proxy
from routing.mesh.compile.uncompilable import Uncompilable
from routing.mesh.documents.reading import files_of, read
from routing.mesh.meshes import meshes_of
from routing.mesh.model.resources import VirtualGateway, VirtualNode
from routing.mesh.problem import Severity
from routing.mesh.snapshot import MeshSnapshot
from routing.xds.resources import snapshot_of
from routing.xds.snapshot import Dangling, Snapshot


class Unusable(Exception):
    """These resources cannot be served; the text says why."""


class Configurations(msgspec.Struct, frozen=True):
    """The meshes of one reading of a folder."""

    meshes: Mapping[str, MeshSnapshot]
    endpoints: Mapping[str, tuple[Endpoint, ...]]

    def of(self, node: str, proxy: Proxy) -> Snapshot:
        """Return what the proxy of a node runs; raises Unusable."""
        for snapshot in self.meshes.values():
            proxied: list[VirtualNode | VirtualGateway] = [
                *snapshot.nodes.values(),
                *snapshot.gateways.values(),
            ]
            for each in proxied:
                if each.path == node:
                    return self._compiled(snapshot, each, proxy)
        raise Unusable(f"there is no {node}")

    def _compiled(self, mesh: MeshSnapshot, of: VirtualNode | VirtualGateway, proxy: Proxy) -> Snapshot:
        given = msgspec.structs.replace(proxy, endpoints=dict(self.endpoints))
        try:
            return snapshot_of(compiled(mesh, of, given))
        except Uncompilable as error:
            raise Unusable("; ".join(str(problem) for problem in error.problems)) from error
        except Dangling as error:
            raise Unusable(f"{of.path}: {error}") from error


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


def loaded(place: Path, parameters: Mapping[str, str], endpoints: Path | None) -> Configurations:
    """Read a folder; raises Unusable where there is an error in it: all of it is served, or nothing."""
    try:
        meshes = meshes_of(read(place, parameters))
        found = {} if endpoints is None else endpoints_in(endpoints.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise Unusable(str(error)) from error
    errors = [str(problem) for problem in meshes.problems if problem.severity is Severity.ERROR]
    if errors:
        raise Unusable("; ".join(errors))
    return Configurations(meshes.snapshots, found)


def endpoints_in(body: bytes) -> dict[str, tuple[Endpoint, ...]]:
    """Return endpoints by node; raises msgspec.DecodeError."""
    given = msgspec.json.decode(body, type=dict[str, list[str]])
    return {node: tuple(_endpoint(each) for each in each_of) for node, each_of in given.items()}


def _endpoint(text: str) -> Endpoint:
    host, separator, port = text.rpartition(":")
    if separator and port.isdecimal() and (":" not in host or host.startswith("[")):
        return Endpoint(host.strip("[]"), int(port))
    return Endpoint(text.strip("[]"))
