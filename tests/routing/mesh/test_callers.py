"""Who may call a node is what backends and gateway routes lead to, and nobody else."""

from __future__ import annotations

from pathlib import Path

from tests.support import mesh_documents as of

NODES = "mesh/shop/virtualNode"
SHOP = [
    of.mesh(),
    of.node("front", 8080, backends=("cart", "stock")),
    of.node("back", 8081, backends=("stock",)),
    of.node("cart-1", 8082),
    of.node("cart-2", 8083),
    of.node("shadow", 8084),
    of.node("stock-1", 9000, protocol="tcp"),
    of.router("cart"),
    of.route("cart", "all", {"cart-1": 1, "cart-2": 0}),
    of.service("cart", router="cart"),
    of.service("stock", node="stock-1"),
    of.service("nobody", node="back"),
    of.gateway("edge", 8088),
    of.gateway_route("edge", "cart", "cart", {"prefix": "/cart"}),
]


def test_callers_are_those_whose_backends_and_routes_lead_to_a_node(tmp_path: Path) -> None:
    found = of.snapshot(tmp_path, *SHOP).callers
    edge = "mesh/shop/virtualGateway/edge"
    assert found == {
        f"{NODES}/cart-1": {f"{NODES}/front", edge},
        f"{NODES}/cart-2": {f"{NODES}/front", edge},
        f"{NODES}/stock-1": {f"{NODES}/front", f"{NODES}/back"},
    }


def test_who_calls_a_route_calls_its_mirror(tmp_path: Path) -> None:
    policy = of.policy(
        "copy", "virtualRouter/cart/route/all", mirror={"virtualNode": "shadow", "percent": 10}
    )
    found = of.snapshot(tmp_path, *SHOP, policy).callers
    assert found[f"{NODES}/shadow"] == found[f"{NODES}/cart-1"]
