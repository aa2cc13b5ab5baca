"""From a method and a path to an operation of the service model, and the names that the path has."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

import msgspec

from routing.mesh.api.errors import ApiError, bad
from routing.mesh.model.policies import READ, Policy
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

VERSION: Final = "v20190125"
NAME_MAX: Final = 255


class Collection(msgspec.Struct, frozen=True):
    """Resources of one kind below one parent.

    `kind` is as an ARN has it, `plural` as a list names it; `parents` are the kinds above it, from the
    mesh on.
    """

    kind: str
    plural: str
    shape: type[Resource]
    parents: tuple[str, ...] = ("mesh",)

    @property
    def member(self) -> str:
        """The member that names a resource of this kind."""
        return f"{self.kind}Name"


COLLECTIONS: Final = {
    "/".join((*found.parents[1:], found.plural)): found
    for found in (
        Collection("mesh", "meshes", Mesh, ()),
        Collection("virtualService", "virtualServices", VirtualService),
        Collection("virtualNode", "virtualNodes", VirtualNode),
        Collection("virtualRouter", "virtualRouters", VirtualRouter),
        Collection("virtualGateway", "virtualGateways", VirtualGateway),
        Collection("route", "routes", Route, ("mesh", "virtualRouter")),
        Collection("gatewayRoute", "gatewayRoutes", GatewayRoute, ("mesh", "virtualGateway")),
        Collection("policy", "policies", Policy),
    )
}
assert {found.kind for found in COLLECTIONS.values()} == set(READ)
VERBS_OF_ALL: Final = {"PUT": "create", "GET": "list"}
VERBS_OF_ONE: Final = {"PUT": "update", "GET": "describe", "DELETE": "delete"}
TAGS: Final = {("PUT", "tag"): "tag", ("PUT", "untag"): "untag", ("GET", "tags"): "tags"}


class Operation(msgspec.Struct, frozen=True):
    """What is asked for: a verb, of what, and the names in the path, from the mesh on."""

    verb: str
    collection: Collection | None = None
    names: tuple[str, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.verb in {"create", "update", "delete", "tag", "untag"}


def operation(method: str, path: str) -> Operation:
    """Return the operation of a path as it was sent, not decoded; raises `ApiError`."""
    version, *segments = path.strip("/").split("/")
    found = _operation(method, [unquote(segment) for segment in segments]) if version == VERSION else None
    if found is None:
        raise ApiError("UnknownOperationException", "there is no such operation")
    for name in found.names:
        check_name("path", name)
    return found


def _operation(method: str, segments: list[str]) -> Operation | None:
    if len(segments) == 1 and (tags := TAGS.get((method, segments[0]))) is not None:
        return Operation(tags)
    if not segments or segments[0] != "meshes":
        return None
    # meshes / MESH / virtualRouter / ROUTER / routes / ROUTE: kinds and names in turns
    kinds, names = segments[2::2], segments[1::2]
    collection = COLLECTIONS.get("/".join(kinds) if kinds else "meshes")
    if collection is None or len(kinds) != len(collection.parents):
        return None
    verb = (VERBS_OF_ONE if len(names) > len(collection.parents) else VERBS_OF_ALL).get(method)
    return None if verb is None else Operation(verb, collection, tuple(names))


def check_name(field: str, name: str) -> None:
    """Refuse a name that cannot stand in an ARN."""
    if not 1 <= len(name) <= NAME_MAX:
        raise bad(field, f"a name has 1 to {NAME_MAX} characters")
    if "/" in name or not name.isprintable():
        raise bad(field, "a name has no / and no control characters")
