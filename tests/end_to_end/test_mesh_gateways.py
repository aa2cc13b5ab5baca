"""Gateways into the mesh, and calls of gRPC."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from aiohttp import web

from tests.support import mesh_documents as of
from tests.support.grpc_server import grpc_server
from tests.support.mesh_client import Client, cart, session
from tests.support.mesh_rig import envoys, port
from tests.support.upstream_servers import servers

pytestmark = [pytest.mark.end_to_end]


async def test_a_gateway_matches_and_rewrites_before_the_service_routes(tmp_path: Path) -> None:
    ports = {"v1": port(), "v2": port()}
    edge = port()
    routes = [
        of.route("cart", "all", {"v1": 1}),
        of.route("cart", "beta", {"v2": 1}, match={"prefix": "/beta"}),
    ]
    rules: dict[str, tuple[of.Document, of.Document | None]] = {
        "kept": ({"prefix": "/kept"}, {"prefix": {"defaultPrefix": "DISABLED"}}),
        "other": ({"prefix": "/other/"}, {"prefix": {"value": "/new/"}}),
        "whole": ({"path": {"exact": "/whole"}}, {"path": {"exact": "/beta/x"}}),
        "asis": ({"path": {"exact": "/asis"}}, None),
        "plain": ({"prefix": "/plain"}, None),
        "host": (
            {"prefix": "/", "hostname": {"exact": "shop.example.com"}},
            {"hostname": {"defaultTargetHostname": "DISABLED"}},
        ),
        "hosts": ({"prefix": "/", "hostname": {"suffix": ".example.org"}}, None),
        "stars": ({"prefix": "/", "hostname": {"suffix": "*.example.net"}}, None),
    }
    documents = [
        *cart(ports, *routes),
        of.gateway("edge", edge),
        *[
            of.gateway_route("edge", name, "cart.local", match, rewrite)
            for name, (match, rewrite) in rules.items()
        ],
    ]
    snapshot = of.snapshot(tmp_path, *documents)
    async with servers(2) as (one, two), session() as asking:
        one.behaviour = two.behaviour = echo
        applications: dict[str, dict[int, int]] = {
            "edge": {},
            "v1": {ports["v1"]: one.port},
            "v2": {ports["v2"]: two.port},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            client = Client(asking, running["edge"].url(edge))

            async def becomes(path: str, host: str = "x", **headers: str) -> tuple[str, str]:
                status, text = await client.ask(path, host, headers=headers)
                assert status == 200, (path, status)
                said = json.loads(text)
                assert not [name for name in said["headers"] if name.lower() == "x-headworks-service"]
                return said["host"], said["path"]

            to = "cart.local"
            assert await becomes("/plain/x?q=1") == (to, "/x?q=1")
            assert await becomes("/plain") == (to, "/")
            assert await becomes("/kept/x") == (to, "/kept/x")
            assert await becomes("/other/x") == (to, "/new/x")
            assert await becomes("/asis?q=1") == (to, "/asis?q=1")
            assert (one.seen, two.seen) == (5, 0)
            assert await becomes("/whole?q=1") == (to, "/beta/x?q=1")
            assert await becomes("/plain/beta") == (to, "/beta")  # the service routes what was rewritten
            assert (one.seen, two.seen) == (5, 2)
            assert await becomes("/a", "shop.example.com") == ("shop.example.com", "/a")
            assert await becomes("/a", "SHOP.example.com:8080") == ("SHOP.example.com:8080", "/a")
            assert await becomes("/a", "b.example.org") == (to, "/a")
            assert await becomes("/a", "C.Example.NET:81") == (to, "/a")
            assert (await client.ask("/a", "example.org"))[0] == 404
            assert await becomes("/plain/a", **{"x-headworks-service": "other.local:80"}) == (to, "/a")


async def echo(request: web.Request) -> web.Response:
    return web.json_response(
        {"host": request.host, "path": request.path_qs, "headers": dict(request.headers)}
    )


async def test_calls_of_grpc_go_by_service_method_and_metadata(tmp_path: Path) -> None:
    ports = {"v1": port(), "v2": port()}
    to_b = {"v2": 1}
    routes = [
        of.route("cart", "all", {"v1": 1}, kind="grpcRoute", match={}),
        of.route(
            "cart", "method", to_b, kind="grpcRoute", match={"serviceName": "shop.Cart", "methodName": "Add"}
        ),
        of.route("cart", "service", to_b, kind="grpcRoute", match={"serviceName": "shop.Stock"}),
        of.route(
            "cart",
            "metadata",
            to_b,
            kind="grpcRoute",
            match={"metadata": [{"name": "canary", "match": {"exact": "yes"}}]},
            priority=1,
        ),
        of.route(
            "cart",
            "tried",
            {"v1": 1},
            kind="grpcRoute",
            match={"serviceName": "shop.Flaky"},
            retryPolicy={
                "maxRetries": 2,
                "perRetryTimeout": {"unit": "s", "value": 5},
                "grpcRetryEvents": ["resource-exhausted"],
            },
        ),
    ]
    edge = port()
    documents = [
        of.mesh(),
        of.node("front", 8080, protocol="grpc", backends=("cart.local",)),
        of.service("cart.local", router="cart"),
        of.router("cart", 80, "grpc"),
        *[of.node(name, at, protocol="grpc") for name, at in ports.items()],
        *routes,
        of.gateway("edge", edge, "grpc"),
        of.gateway_route("edge", "cart", "cart.local", {"serviceName": "shop.Cart"}, kind="grpcRoute"),
    ]
    snapshot = of.snapshot(tmp_path, *documents)
    async with grpc_server(b"a") as one, grpc_server(b"b") as two:
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "edge": {},
            "v1": {ports["v1"]: one},
            "v2": {ports["v2"]: two},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            options = [("grpc.default_authority", "cart.local")]
            egress = f"127.0.0.1:{running['front'].proxy.egress_port}"
            async with grpc.aio.insecure_channel(egress, options) as channel:

                async def calls(method: str, **metadata: str) -> bytes:
                    call = channel.unary_unary(method)
                    return bytes(await call(b"", metadata=list(metadata.items()), timeout=10))

                assert await calls("/shop.Cart/Get") == b"a"
                assert await calls("/shop.Cart/Add") == b"b"
                assert await calls("/shop.Stock/Get") == b"b"
                assert await calls("/shop.Cart/Get", canary="yes") == b"b"
                assert await calls("/shop.Flaky/Get") == b"a"
            async with grpc.aio.insecure_channel(f"127.0.0.1:{edge}") as channel:
                assert await calls("/shop.Cart/Get") == b"a"
                assert await calls("/shop.Cart/Add") == b"b"
                with pytest.raises(grpc.aio.AioRpcError):
                    await calls("/shop.Stock/Get")
