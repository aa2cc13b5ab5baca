"""From what is kept to resources, and to the meshes that proxies can be served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from routing.mesh.api.operations import COLLECTIONS, Collection
from routing.mesh.api.store import Record
from routing.mesh.documents.reading import Found, Read
from routing.mesh.meshes import Meshes, meshes_of
from routing.mesh.model.resources import Resource, VirtualNode, VirtualService
from routing.mesh.problem import Problem

BY_KIND: Final = {found.kind: found for found in COLLECTIONS.values()}


def collection_of(path: str) -> Collection:
    """Return the collection that a resource is in."""
    return BY_KIND[path.split("/")[-2]]


def made(collection: Collection, names: Iterable[str], spec: dict[str, Any]) -> Resource:
    """Return a resource by its names, from the mesh on; raises msgspec.ValidationError."""
    kinds = (*collection.parents, collection.kind)
    named = {f"{kind}Name": name for kind, name in zip(kinds, names, strict=True)}
    return msgspec.convert(named | {"spec": spec}, collection.shape)


def meshes_in(records: Iterable[Record]) -> Meshes:
    """Return the meshes of all that is kept.

    A backend may be said before its service is there, as the API allows: until it is, nobody calls it.
    """
    resources: list[Resource] = []
    problems: list[Problem] = []
    for each in records:
        try:
            resources.append(made(collection_of(each.path), each.path.split("/")[1::2], each.spec))
        except msgspec.ValidationError as error:  # kept by a version that knew less
            problems.append(Problem("", each.path, "spec", str(error)))
    services = {each.path for each in resources if isinstance(each, VirtualService)}
    found = [Found(_without_missing_backends(each, services), "") for each in resources]
    return meshes_of(Read(tuple(found), tuple(problems)))


def _without_missing_backends(resource: Resource, services: set[str]) -> Resource:
    if not isinstance(resource, VirtualNode) or not resource.spec.backends:
        return resource
    mesh = f"mesh/{resource.mesh_name}"
    there = tuple(
        each
        for each in resource.spec.backends
        if each.virtual_service is not None
        and f"{mesh}/virtualService/{each.virtual_service.virtual_service_name}" in services
    )
    spec = msgspec.structs.replace(resource.spec, backends=there)
    return msgspec.structs.replace(resource, spec=spec)
