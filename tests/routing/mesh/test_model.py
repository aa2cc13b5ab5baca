"""Our shapes against botocore's service model, member by member; and unions."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import botocore.session
import msgspec
import pytest
from botocore.model import ListShape, Shape, StringShape, StructureShape

from routing.mesh.model import resources
from routing.mesh.model.resources import GatewayRoute, Route, VirtualNode, VirtualService
from routing.mesh.model.shape import OneOf, Timestamp

MODEL = botocore.session.get_session().get_service_model("appmesh", api_version="2019-01-25")
ABSENT_BEFORE_CREATION = {"metadata", "status"}
DEFAULTED = {("MeshData", "spec")}
STRICTER = {("MeshData.status", "status")}
"""A status that says nothing: the service never gives one, and ours are all of one type."""
Pair = tuple[str, Shape, Any]


def unwrapped(hint: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Return a type without `| None` and Annotated, and its constraints."""
    metas: list[msgspec.Meta] = []
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint, *found = typing.get_args(hint)
            metas += [meta for meta in found if isinstance(meta, msgspec.Meta)]
        elif typing.get_origin(hint) in {types.UnionType, typing.Union}:
            rest = [arm for arm in typing.get_args(hint) if arm is not type(None)]
            if len(rest) != 1:
                return hint, metas
            (hint,) = rest
        else:
            return hint, metas


def pairs() -> Iterator[Pair]:
    """Yield every shape that a resource has, with where it is, and our type at that place."""
    waiting: list[Pair] = []
    for name, struct in resources.KINDS.items():
        shape = MODEL.shape_for(f"{name[0].upper()}{name[1:]}Data")
        waiting.append((shape.name, shape, struct))
    while waiting:
        where, shape, hint = waiting.pop()
        yield where, shape, hint
        ours, _ = unwrapped(hint)
        if isinstance(shape, StructureShape):
            fields = {field.encode_name: field for field in msgspec.structs.fields(ours)}
            for member, inner in shape.members.items():
                if member in fields:
                    waiting.append((f"{where}.{member}", inner, fields[member].type))
        elif isinstance(shape, ListShape):
            waiting.append((f"{where}[]", shape.member, typing.get_args(ours)[0]))


PAIRS = {where: (shape, hint) for where, shape, hint in pairs()}


def test_the_walk_reaches_every_shape_of_the_resources() -> None:
    described = {name for name in MODEL.shape_names if not name.endswith(("Input", "Output", "Exception"))}
    of_requests = {
        name
        for name in described
        if name.startswith(("List", "Tag")) and not name.startswith("Listener") and name != "Tag"
    } | {name for name in described if name.endswith(("Ref", "List"))}
    reached = {shape.name for shape, _ in PAIRS.values()}
    left = described - reached - of_requests
    assert not {name for name in left if isinstance(MODEL.shape_for(name), StructureShape)}
    assert len(reached) > 150


@pytest.mark.parametrize(
    "where", [where for where, (shape, _) in PAIRS.items() if isinstance(shape, StructureShape)]
)
def test_a_structure_has_the_same_members(where: str) -> None:
    shape, hint = PAIRS[where]
    assert isinstance(shape, StructureShape)
    ours, _ = unwrapped(hint)
    fields = {field.encode_name: field for field in msgspec.structs.fields(ours)}
    assert set(fields) == set(shape.members)
    required = {name for name, field in fields.items() if field.required}
    at_the_top = "." not in where
    expected = set(shape.required_members)
    if at_the_top:
        expected -= ABSENT_BEFORE_CREATION | {member for of, member in DEFAULTED if of == where}
    expected |= {member for of, member in STRICTER if of == where}
    assert required == expected
    union = bool(getattr(shape, "is_tagged_union", False))
    assert issubclass(ours, OneOf) == union
    assert ours.__struct_config__.frozen
    assert ours.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize(
    "where", [where for where, (shape, _) in PAIRS.items() if not isinstance(shape, StructureShape)]
)
def test_a_value_has_the_same_limits(where: str) -> None:
    shape, hint = PAIRS[where]
    ours, metas = unwrapped(hint)
    said = {
        name: value
        for meta in metas
        for name in ("ge", "le", "min_length", "max_length", "pattern")
        if (value := getattr(meta, name)) is not None
    }
    limits = shape.metadata
    expected: dict[str, Any] = {}
    match shape.type_name:
        case "string":
            assert isinstance(shape, StringShape)
            names = ("min_length", "max_length")
            if shape.enum:
                assert sorted(typing.get_args(ours)) == sorted(shape.enum)
            else:
                assert ours is str
        case "list":
            names = ("min_length", "max_length")
            assert typing.get_origin(ours) is tuple
        case "integer" | "long":
            names = ("ge", "le")
            assert ours is int
        case "boolean":
            names = ("ge", "le")
            assert ours is bool
        case "timestamp":
            names = ("ge", "le")
            assert ours == Timestamp
        case other:
            raise AssertionError(other)
    expected = {
        ours_: limits[theirs] for ours_, theirs in zip(names, ("min", "max"), strict=True) if theirs in limits
    }
    if "pattern" in limits:
        expected["pattern"] = limits["pattern"]
    assert said == expected


def node(**listener: object) -> dict[str, object]:
    return {
        "meshName": "m",
        "virtualNodeName": "n",
        "spec": {"listeners": [{"portMapping": {"port": 80, "protocol": "http"}, **listener}]},
    }


def route(**match: object) -> dict[str, object]:
    targets = {"weightedTargets": [{"virtualNode": "n", "weight": 1}]}
    spec = {"httpRoute": {"action": targets, "match": match}}
    return {"meshName": "m", "virtualRouterName": "r", "routeName": "x", "spec": spec}


def refused(value: object, kind: type[resources.Resource]) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, kind)
    return str(caught.value)


def test_a_union_with_none_of_its_members_is_refused_by_its_path() -> None:
    text = refused(node(timeout={}), VirtualNode)
    assert (
        text
        == "exactly one of grpc, http, http2, tcp must be set, not none - at `$.spec.listeners[0].timeout`"
    )


def test_a_union_with_two_of_its_members_is_refused_by_its_path() -> None:
    pools = {"http": {"maxConnections": 1}, "tcp": {"maxConnections": 1}}
    text = refused(node(connectionPool=pools), VirtualNode)
    assert "not http and tcp - at `$.spec.listeners[0].connectionPool`" in text


def test_a_service_has_one_provider() -> None:
    both = {"virtualNode": {"virtualNodeName": "n"}, "virtualRouter": {"virtualRouterName": "r"}}
    value = {"meshName": "m", "virtualServiceName": "s", "spec": {"provider": both}}
    assert refused(value, VirtualService).endswith("at `$.spec.provider`")
    msgspec.convert({**value, "spec": {}}, VirtualService)


def test_a_route_is_of_one_kind() -> None:
    value = route(prefix="/")
    spec = value["spec"]
    assert isinstance(spec, dict)
    assert refused({**value, "spec": {**spec, "http2Route": spec["httpRoute"]}}, Route).endswith(
        "at `$.spec`"
    )
    assert "not none" in refused({**value, "spec": {"priority": 1}}, Route)


def test_a_path_and_a_prefix_exclude_each_other() -> None:
    text = refused(route(prefix="/", path={"exact": "/a"}), Route)
    assert (
        text == "at most one of prefix, path must be set, not prefix and path - at `$.spec.httpRoute.match`"
    )
    assert "exactly one of exact, regex" in refused(route(path={}), Route)


def test_rewrites_exclude_each_other() -> None:
    action = {
        "target": {"virtualService": {"virtualServiceName": "s"}},
        "rewrite": {"prefix": {"defaultPrefix": "DISABLED", "value": "/a/"}},
    }
    spec = {"httpRoute": {"action": action, "match": {"prefix": "/"}}}
    value = {"meshName": "m", "virtualGatewayName": "g", "gatewayRouteName": "r", "spec": spec}
    assert refused(value, GatewayRoute).endswith("at `$.spec.httpRoute.action.rewrite.prefix`")


def test_what_the_service_does_not_know_is_refused() -> None:
    assert "unknown field `mirror`" in refused(node(mirror={}), VirtualNode)


@pytest.mark.parametrize("name", resources.KINDS)
def test_resources_are_named_as_their_arns_are(name: str) -> None:
    kind = resources.KINDS[name]
    names = {
        field.encode_name: "x" for field in msgspec.structs.fields(kind) if field.encode_name.endswith("Name")
    }
    spec: dict[str, object] = {"listeners": []} if name == "virtualGateway" else {}
    if name == "route":
        spec = route(prefix="/")["spec"]  # type: ignore[assignment]
    if name == "gatewayRoute":
        target = {"virtualService": {"virtualServiceName": "s"}}
        spec = {"grpcRoute": {"action": {"target": target}, "match": {}}}
    made = msgspec.convert({**names, "spec": spec}, kind)
    parent = {"mesh": "", "route": "/virtualRouter/x", "gatewayRoute": "/virtualGateway/x"}.get(name, "")
    assert made.path == ("mesh/x" if name == "mesh" else f"mesh/x{parent}/{name}/x")
