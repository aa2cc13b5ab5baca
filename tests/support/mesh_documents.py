"""App Mesh resources as `aws appmesh create-*` takes them, made short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from routing.mesh.snapshot import MeshSnapshot

Document = dict[str, Any]
MESH = "shop"


def mesh(egress: str = "DROP_ALL") -> Document:
    return {"meshName": MESH, "spec": {"egressFilter": {"type": egress}}}


def service(name: str, *, router: str = "", node: str = "") -> Document:
    provider = (
        {"virtualRouter": {"virtualRouterName": router}}
        if router
        else {"virtualNode": {"virtualNodeName": node}}
    )
    return {"meshName": MESH, "virtualServiceName": name, "spec": {"provider": provider}}


def node(
    name: str,
    port: int,
    *,
    protocol: str = "http",
    backends: tuple[str, ...] = (),
    more: Document | None = None,
    **listener: object,
) -> Document:
    spec = {
        "listeners": [{"portMapping": {"port": port, "protocol": protocol}, **listener}],
        "serviceDiscovery": {"dns": {"hostname": "127.0.0.1"}},
        "backends": [{"virtualService": {"virtualServiceName": backend}} for backend in backends],
        **(more or {}),
    }
    return {"meshName": MESH, "virtualNodeName": name, "spec": spec}


def router(name: str, port: int = 80, protocol: str = "http") -> Document:
    spec = {"listeners": [{"portMapping": {"port": port, "protocol": protocol}}]}
    return {"meshName": MESH, "virtualRouterName": name, "spec": spec}


def route(
    router: str,
    name: str,
    targets: dict[str, int],
    *,
    kind: str = "httpRoute",
    match: Document | None = None,
    priority: int | None = None,
    **more: object,
) -> Document:
    shares = [{"virtualNode": node, "weight": weight} for node, weight in targets.items()]
    of_kind: Document = {"action": {"weightedTargets": shares}, **more}
    if kind != "tcpRoute" or match:
        of_kind["match"] = match if match is not None else {"prefix": "/"}
    spec: Document = {kind: of_kind}
    if priority is not None:
        spec["priority"] = priority
    return {"meshName": MESH, "virtualRouterName": router, "routeName": name, "spec": spec}


def gateway(name: str, port: int, protocol: str = "http", **spec: object) -> Document:
    listeners = [{"portMapping": {"port": port, "protocol": protocol}}]
    return {"meshName": MESH, "virtualGatewayName": name, "spec": {"listeners": listeners, **spec}}


def gateway_route(
    gateway: str,
    name: str,
    service: str,
    match: Document,
    rewrite: Document | None = None,
    *,
    kind: str = "httpRoute",
    priority: int | None = None,
) -> Document:
    action: Document = {"target": {"virtualService": {"virtualServiceName": service}}}
    if rewrite is not None:
        action["rewrite"] = rewrite
    spec: Document = {kind: {"action": action, "match": match}}
    if priority is not None:
        spec["priority"] = priority
    return {"meshName": MESH, "virtualGatewayName": gateway, "gatewayRouteName": name, "spec": spec}


def policy(name: str, target: str = "", **members: object) -> Document:
    return {"meshName": MESH, "policyName": name, "spec": {"target": target, **members}}


def written(folder: Path, *documents: Document) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mesh.json").write_text(json.dumps(documents))
    return folder


def snapshot(folder: Path, *documents: Document) -> MeshSnapshot:
    meshes = meshes_of(read(written(folder, *documents), {}))
    assert not meshes.problems, meshes.problems
    return meshes.snapshots[MESH]
