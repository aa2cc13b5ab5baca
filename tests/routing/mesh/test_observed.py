"""What policies of access logs and traces say, and what is compiled of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme

from routing.mesh.compile.messages import as_json
from routing.mesh.compile.node import compiled, static
from routing.mesh.compile.proxy import Address, Proxy
from routing.mesh.documents.reading import read
from routing.mesh.meshes import meshes_of
from tests.support import mesh_documents as of
from tests.support.mesh_rig import exported, validated

SHOP = [
    of.mesh(),
    of.node("front", 8080, backends=("cart", "stock")),
    of.node("cart-1", 8081),
    of.node("stock", 5432, protocol="tcp"),
    of.router("cart"),
    of.route("cart", "all", {"cart-1": 1}),
    of.service("cart", router="cart"),
    of.service("stock", node="stock"),
    of.gateway("edge", 80),
    of.gateway_route("edge", "in", "cart", {"prefix": "/"}),
]
TRACING = {"collector": "127.0.0.1:4317"}


@pytest.mark.parametrize("host", ["127.0.0.1", "collector.example", "[::1]"])
@pytest.mark.parametrize("name", ["front", "edge", "stock"])
def test_envoy_takes_what_is_said_of_a_proxy(tmp_path: Path, name: str, host: str) -> None:
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    tracing = {"collector": f"{host}:4317", "certificateChain": str(authority), "percent": 0.0001}
    policy = of.policy("p", tracing=tracing, accessLog={"path": "/dev/null", "format": "JSON"})
    mesh = of.snapshot(tmp_path / "mesh", *SHOP, policy)
    validated(exported(tmp_path, mesh, name, Proxy(stats=Address("0.0.0.0", 9902))))  # noqa: S104  # scrapers are elsewhere


@pytest.mark.parametrize(
    ("tracing", "said"),
    [
        ({}, "missing required field `collector`"),
        ({"collector": "collector"}, "tracing.collector: "),
        ({"collector": "http://collector:4317"}, "tracing.collector: "),
        ({"collector": "user@collector:4317"}, "tracing.collector: "),
        ({"collector": "collector:0"}, "has no port from 1 to 65535"),
        ({"collector": "collector:65536"}, "has no port from 1 to 65535"),
        ({**TRACING, "percent": 100.1}, "tracing.percent: "),
        ({**TRACING, "percent": -1}, "tracing.percent: "),
    ],
)
def test_tracing_that_cannot_be_meant_is_refused(tmp_path: Path, tracing: of.Document, said: str) -> None:
    (problem,) = meshes_of(read(of.written(tmp_path, *SHOP, of.policy("p", tracing=tracing)), {})).problems
    assert said in f"{problem.field}: {problem.text}".removeprefix("spec.")


@pytest.mark.parametrize("member", ["tracing", "accessLog"])
def test_it_is_said_of_proxies_and_not_of_routes(tmp_path: Path, member: str) -> None:
    given = {"tracing": TRACING, "accessLog": {}}[member]
    policy = of.policy("p", "virtualRouter/cart/route/all", **{member: given})
    (problem,) = meshes_of(read(of.written(tmp_path, *SHOP, policy), {})).problems
    assert problem.text == "is for mesh and virtualNode and virtualGateway, not route"


def test_a_name_with_signs_of_envoys_formats_is_a_name(tmp_path: Path) -> None:
    documents = [of.mesh(), of.node("50%TRACE_ID%", 8080), of.policy("p", accessLog={"path": "/dev/null"})]
    mesh = of.snapshot(tmp_path / "mesh", *documents)
    (node,) = mesh.nodes.values()
    assert '"proxy": "virtualNode/50%%TRACE_ID%%"' in str(
        as_json(compiled(mesh, node, Proxy()).listeners[0])
    ).replace("'", '"')


def test_labels_take_out_of_a_name_no_more_than_envoys_own_do(tmp_path: Path) -> None:
    """Whoever reads clusters by `envoy_cluster_name` finds them where they were, dots or not."""
    mesh = of.snapshot(tmp_path, *SHOP)
    config = as_json(static(compiled(mesh, mesh.nodes["front"], Proxy()), Proxy()))["stats_config"]
    (callee,) = (re.compile(each["regex"]) for each in config["stats_tags"] if each["tag_name"] == "callee")
    for cluster, said in {
        "cds_egress_shop_cart-1_http_8081": "cart-1",
        "cds_egress_shop_cart_http2_v1_grpc_80": "cart_http2_v1",
        "cds_egress_shop_cart-1_http_8081_cart.local": "cart-1",
        "cds_egress_shop_cart.v1_http_8081": None,
        "cds_egress_other_cart_http_8081": None,
        "cds_ingress_shop_cart-1_http_8081": None,
    }.items():
        name = f"cluster.{cluster}.upstream_rq_total"
        found = callee.match(name)
        assert (found[2] if found else None) == said
        if found:
            assert found.end(1) < name.index(".", len("cluster."))
