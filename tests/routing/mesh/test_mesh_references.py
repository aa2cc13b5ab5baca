"""A mesh is consistent, or says what is not: both ends of every reference that leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from routing.mesh.model.resources import Mesh
from routing.mesh.snapshot import Inconsistent, MeshSnapshot
from tests.support import mesh_documents as of

NO_MESH = (
    "error: mesh.json mesh/shop: is not there; 9 resources are in it. "
    'If others have it: {"meshName":"shop","spec":{}} in a file'
)
GOOD: list[of.Document] = [
    of.mesh(),
    of.node("front", 8080, backends=("cart", "stock")),
    of.node("cart-1", 8080),
    of.node("stock-1", 9000, protocol="tcp"),
    of.router("cart", 80),
    of.route("cart", "all", {"cart-1": 1}),
    of.service("cart", router="cart"),
    of.service("stock", node="stock-1"),
    of.gateway("edge", 8088),
    of.gateway_route("edge", "cart", "cart", {"prefix": "/cart"}),
]


def changed(index: int, path: str, value: Any) -> list[of.Document]:
    """Return the good mesh with one value changed."""

    def at(document: Any, keys: list[str]) -> Any:
        key: Any = int(keys[0]) if keys[0].isdecimal() else keys[0]
        copy = list(document) if isinstance(document, list) else dict(document)
        if len(keys) == 1:
            copy[key] = value
        else:
            copy[key] = at(copy.get(key, {}) if isinstance(copy, dict) else copy[key], keys[1:])
        return copy

    made = list(GOOD)
    made[index] = at(made[index], path.split("."))
    return made


def problems(folder: Path, documents: list[of.Document]) -> list[str]:
    found = meshes_of(read(of.written(folder, *documents), {})).problems
    return [str(problem).replace(" mesh.json mesh/shop/", " ") for problem in found]


def test_a_good_mesh_is_a_snapshot(tmp_path: Path) -> None:
    made = of.snapshot(tmp_path, *GOOD)
    assert sorted(made.nodes) == ["cart-1", "front", "stock-1"]
    assert [route.route_name for route in made.routes("cart")] == ["all"]
    assert [route.gateway_route_name for route in made.gateway_routes("edge")] == ["cart"]
    assert not made.routes("gone")
    assert not made.gateway_routes("gone")
    with pytest.raises(TypeError):
        made.nodes["x"] = made.nodes["front"]  # type: ignore[index]


ROUTER = "mesh/shop/virtualRouter/cart"
GATEWAY = "mesh/shop/virtualGateway/edge"
SECOND = "spec.backends[1].virtualService.virtualServiceName"
ROUTE = "virtualRouter/cart/route/all"
EDGE = "virtualGateway/edge/gatewayRoute/cart"


@pytest.mark.parametrize(
    ("index", "path", "value", "expected"),
    [
        (
            1,
            "spec.backends.0.virtualService.virtualServiceName",
            "gone",
            (
                "error: virtualNode/front spec.backends[0].virtualService.virtualServiceName: "
                "there is no mesh/shop/virtualService/gone"
            ),
        ),
        (
            1,
            "spec.backends.0.virtualService.virtualServiceName",
            "stock",
            f"error: virtualNode/front {SECOND}: stock is a backend twice",
        ),
        (
            5,
            "spec.httpRoute.action.weightedTargets.0.virtualNode",
            "gone",
            (
                f"error: {ROUTE} spec.httpRoute.action.weightedTargets[0].virtualNode: "
                "there is no mesh/shop/virtualNode/gone"
            ),
        ),
        (
            5,
            "spec.httpRoute.action.weightedTargets.0.port",
            81,
            (
                f"error: {ROUTE} spec.httpRoute.action.weightedTargets[0].virtualNode: "
                "mesh/shop/virtualNode/cart-1 does not listen on port 81, but on 8080"
            ),
        ),
        (
            5,
            "spec.httpRoute.action.weightedTargets.0.weight",
            0,
            f"error: {ROUTE} spec.httpRoute.action.weightedTargets: no target has a weight over 0",
        ),
        (
            5,
            "spec.httpRoute.match.port",
            81,
            f"error: {ROUTE} spec.httpRoute.match.port: {ROUTER} does not listen on port 81",
        ),
        (
            5,
            "spec.httpRoute.match.prefix",
            "x",
            f"error: {ROUTE} spec.httpRoute.match.prefix: does not begin with /",
        ),
        (
            5,
            "virtualRouterName",
            "gone",
            "error: virtualRouter/gone/route/all virtualRouterName: there is no mesh/shop/virtualRouter/gone",
        ),
        (
            4,
            "spec.listeners.0.portMapping.protocol",
            "tcp",
            (
                f"warning: {ROUTE} spec.httpRoute: mesh/shop/virtualRouter/cart listens for tcp: "
                "this route is never reached"
            ),
        ),
        (
            4,
            "spec.listeners",
            [],
            (
                "error: virtualService/cart spec.provider.virtualRouter.virtualRouterName: "
                "mesh/shop/virtualRouter/cart has no listener: it cannot be called"
            ),
        ),
        (
            6,
            "spec.provider.virtualRouter.virtualRouterName",
            "gone",
            (
                "error: virtualService/cart spec.provider.virtualRouter.virtualRouterName: "
                "there is no mesh/shop/virtualRouter/gone"
            ),
        ),
        (
            7,
            "spec.provider.virtualNode.virtualNodeName",
            "gone",
            (
                "error: virtualService/stock spec.provider.virtualNode.virtualNodeName: "
                "there is no mesh/shop/virtualNode/gone"
            ),
        ),
        (
            7,
            "spec",
            {},
            "warning: virtualService/stock spec.provider: is not set: calls of this service fail",
        ),
        (
            3,
            "spec.serviceDiscovery",
            None,
            (
                "error: virtualService/stock spec.provider.virtualNode.virtualNodeName: "
                "mesh/shop/virtualNode/stock-1 has no service discovery: its endpoints cannot be found"
            ),
        ),
        (
            3,
            "spec.listeners",
            [],
            (
                "error: virtualService/stock spec.provider.virtualNode.virtualNodeName: "
                "mesh/shop/virtualNode/stock-1 has no listener: it cannot be called"
            ),
        ),
        (
            3,
            "spec.listeners",
            [{"portMapping": {"port": 9000, "protocol": "tcp"}}] * 2,
            "error: virtualNode/stock-1 spec.listeners[1].portMapping.port: another listener has port 9000",
        ),
        (
            2,
            "spec.listeners",
            [{"portMapping": {"port": port, "protocol": "http"}} for port in (8080, 8081)],
            (
                f"error: {ROUTE} spec.httpRoute.action.weightedTargets[0].port: "
                "is needed: mesh/shop/virtualNode/cart-1 listens on 8080, 8081"
            ),
        ),
        (
            9,
            "spec.httpRoute.action.target.virtualService.virtualServiceName",
            "gone",
            (
                f"error: {EDGE} spec.httpRoute.action.target.virtualService.virtualServiceName: "
                "there is no mesh/shop/virtualService/gone"
            ),
        ),
        (
            9,
            "spec.httpRoute.action.target.port",
            81,
            (
                f"error: {EDGE} spec.httpRoute.action.target.port: "
                "mesh/shop/virtualService/cart is not called on port 81, but on 80"
            ),
        ),
        (
            9,
            "spec.httpRoute.match.port",
            81,
            f"error: {EDGE} spec.httpRoute.match.port: {GATEWAY} does not listen on port 81",
        ),
        (
            9,
            "virtualGatewayName",
            "gone",
            (
                "error: virtualGateway/gone/gatewayRoute/cart virtualGatewayName: "
                "there is no mesh/shop/virtualGateway/gone"
            ),
        ),
        (
            9,
            "spec.httpRoute.match.prefix",
            "x",
            f"error: {EDGE} spec.httpRoute.match.prefix: does not begin with /",
        ),
        (
            9,
            "spec.httpRoute.action.rewrite",
            {"path": {"exact": "/x"}},
            f"error: {EDGE} spec.httpRoute.action.rewrite.path: needs a match by path",
        ),
        (
            0,
            "meshName",
            "other",
            NO_MESH,
        ),
    ],
)
def test_what_leads_nowhere_is_named_with_both_ends(
    tmp_path: Path, index: int, path: str, value: object, expected: str
) -> None:
    said = problems(tmp_path, changed(index, path, value))
    assert expected.replace("mesh.json ", "") in [each.replace("mesh.json ", "") for each in said]


def test_nothing_is_there_twice(tmp_path: Path) -> None:
    assert "error: virtualNode/front: is there twice" in problems(tmp_path, [*GOOD, GOOD[1]])


def test_a_snapshot_is_of_one_mesh() -> None:
    with pytest.raises(Inconsistent, match="exactly one mesh, not a, b"):
        MeshSnapshot([Mesh(mesh_name="a"), Mesh(mesh_name="b")])


ACM = {"acm": {"certificateArn": "arn:aws:acm:eu-west-1:123456789012:certificate/x"}}


@pytest.mark.parametrize(
    ("index", "path", "value", "field", "text"),
    [
        (
            2,
            "spec.listeners.0.tls",
            {"mode": "STRICT", "certificate": ACM},
            "spec.listeners[0].tls.certificate.acm",
            "AWS",
        ),
        (
            8,
            "spec.listeners.0.tls",
            {"mode": "STRICT", "certificate": ACM},
            "spec.listeners[0].tls.certificate.acm",
            "AWS",
        ),
        (
            1,
            "spec.backendDefaults",
            {
                "clientPolicy": {
                    "tls": {"validation": {"trust": {"acm": {"certificateAuthorityArns": ["a"]}}}}
                }
            },
            "spec.backendDefaults.clientPolicy.tls.validation.trust.acm",
            "AWS",
        ),
        (5, "spec.httpRoute.match.method", "CONNECT", "spec.httpRoute.match.method", "CONNECT is not routed"),
        (
            5,
            "spec.httpRoute.retryPolicy",
            {"maxRetries": 1, "perRetryTimeout": {"unit": "s", "value": 1}, "httpRetryEvents": ["odd"]},
            "spec.httpRoute.retryPolicy.httpRetryEvents[0]",
            "odd is none of server-error, gateway-error, client-error, stream-error",
        ),
        (9, "spec.httpRoute.match.method", "CONNECT", "spec.httpRoute.match.method", "CONNECT is not routed"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, index: int, path: str, value: object, field: str, text: str
) -> None:
    found = meshes_of(read(of.written(tmp_path, *changed(index, path, value)), {})).problems
    (problem,) = found
    assert problem.severity.value == "unsupported"
    assert problem.field == field
    assert text in problem.text
    assert problem.file == "mesh.json"


def test_a_health_check_of_a_gateway_is_said_to_have_no_effect(tmp_path: Path) -> None:
    check = {
        "healthyThreshold": 2,
        "intervalMillis": 5000,
        "protocol": "http",
        "timeoutMillis": 2000,
        "unhealthyThreshold": 2,
    }
    (said,) = problems(tmp_path, changed(8, "spec.listeners.0.healthCheck", check))
    assert said.startswith("warning: virtualGateway/edge spec.listeners[0].healthCheck: has no effect")
