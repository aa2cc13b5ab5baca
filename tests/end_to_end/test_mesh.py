"""A mesh of real Envoys before real servers: what App Mesh resources say is what happens."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from aiohttp import web

from routing.mesh.compile.proxy import Endpoint
from tests.support import mesh_documents as of
from tests.support.mesh_rig import Envoy, envoys, port
from tests.support.upstream_servers import servers

pytestmark = [pytest.mark.end_to_end]
ONCE: dict[str, Any] = {"retryPolicy": {"maxRetries": 0, "perRetryTimeout": {"unit": "s", "value": 10}}}


class Client:
    """Asks a proxy, as an application would."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def ask(
        self,
        path: str = "/",
        host: str = "cart.local",
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        sent = {"Host": host, **(headers or {})}
        async with self._session.request(
            method, self._base + path, headers=sent, allow_redirects=False
        ) as answer:
            return answer.status, await answer.text()

    async def many(
        self, count: int, at_once: int = 32, path: str = "/"
    ) -> collections.Counter[tuple[int, str]]:
        """Ask `count` times, and count statuses with the first word of the answer."""
        seen: collections.Counter[tuple[int, str]] = collections.Counter()
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                status, text = await self.ask(path)
                seen[status, text.split(" ", 1)[0] if status == 200 else ""] += 1

        await asyncio.gather(*[some() for _ in range(at_once)])
        return seen


def session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


def cart(ports: dict[str, int], *routes: of.Document, **listener: Any) -> list[of.Document]:
    """Return a mesh in which `front` calls `cart.local`, whose routes lead to the nodes in `ports`."""
    return [
        of.mesh(),
        of.node("front", 8080, backends=("cart.local",)),
        of.service("cart.local", router="cart"),
        of.router("cart"),
        *[of.node(name, port, **listener) for name, port in ports.items()],
        *routes,
    ]


async def failing(_: web.Request) -> web.Response:
    return web.Response(status=503, text="failing")


async def test_weights_hold_within_binomial_bounds(tmp_path: Path) -> None:
    count, share = 4000, 0.8
    ports = {"v1": port(), "v2": port()}
    snapshot = of.snapshot(tmp_path, *cart(ports, of.route("cart", "all", {"v1": 80, "v2": 20})))
    async with servers(2) as (one, two), session() as asking:
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "v1": {ports["v1"]: one.port},
            "v2": {ports["v2"]: two.port},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            seen = await Client(asking, running["front"].egress).many(count)
    assert set(seen) == {(200, "a"), (200, "b")}
    bound = 4 * math.sqrt(count * share * (1 - share))
    assert abs(seen[200, "a"] - count * share) < bound
    assert one.seen == seen[200, "a"]


async def test_routes_by_header_path_method_query_and_priority(tmp_path: Path) -> None:
    ports = {"v1": port(), "v2": port()}
    to_b = {"v2": 1}
    routes = [
        of.route("cart", "all", {"v1": 1}),
        of.route("cart", "longer", to_b, match={"prefix": "/long/"}),
        of.route("cart", "exact", to_b, match={"path": {"exact": "/exact"}}),
        of.route("cart", "regex", to_b, match={"path": {"regex": "/item/[0-9]+"}}),
        of.route("cart", "posted", to_b, match={"prefix": "/p", "method": "POST"}),
        of.route(
            "cart",
            "asked",
            to_b,
            match={"prefix": "/q", "queryParameters": [{"name": "v", "match": {"exact": "2"}}]},
        ),
        of.route(
            "cart", "asked-at-all", to_b, match={"prefix": "/q", "queryParameters": [{"name": "there"}]}
        ),
        *[
            of.route(
                "cart",
                f"h-{kind}",
                to_b,
                match={"prefix": "/h", "headers": [{"name": f"x-{kind}", "match": match}]},
            )
            for kind, match in {
                "exact": {"exact": "yes"},
                "prefix": {"prefix": "ye"},
                "suffix": {"suffix": "es"},
                "regex": {"regex": "y.s"},
                "range": {"range": {"start": 5, "end": 10}},
            }.items()
        ],
        of.route("cart", "h-present", to_b, match={"prefix": "/h", "headers": [{"name": "x-present"}]}),
        of.route(
            "cart",
            "h-inverted",
            to_b,
            match={"prefix": "/i", "headers": [{"name": "x-no", "invert": True, "match": {"exact": "no"}}]},
        ),
        of.route("cart", "later", to_b, match={"path": {"exact": "/order/exact"}}, priority=10),
        of.route("cart", "first", {"v1": 1}, match={"prefix": "/order"}, priority=1),
    ]
    snapshot = of.snapshot(tmp_path, *cart(ports, *routes))
    async with servers(2) as (one, two), session() as asking:
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "v1": {ports["v1"]: one.port},
            "v2": {ports["v2"]: two.port},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            client = Client(asking, running["front"].egress)

            async def goes(path: str, method: str = "GET", **headers: str) -> str:
                sent = {f"x-{name}": value for name, value in headers.items()}
                status, text = await client.ask(path, method=method, headers=sent)
                assert status == 200
                return text[0]

            expected = {
                "/": "a", "/long/er": "b", "/long": "a", "/exact": "b", "/exact/not": "a", "/item/7": "b",
                "/item/x": "a", "/p": "a", "/q?v=2": "b", "/q?v=3": "a", "/q?there=": "b", "/h": "a",
                "/i": "a", "/order/exact": "a",
            }  # fmt: skip
            assert {path: await goes(path) for path in expected} == expected
            assert await goes("/p", "POST") == "b"
            for kind in ("exact", "prefix", "suffix", "regex"):
                assert (kind, await goes("/h", **{kind: "yes"})) == (kind, "b")
                assert (kind, await goes("/h", **{kind: "no"})) == (kind, "a")
            assert [await goes("/h", range=str(value)) for value in (4, 5, 9, 10)] == ["a", "b", "b", "a"]
            assert await goes("/h", present="") == "b"
            assert await goes("/i", no="no") == "a"
            assert await goes("/i", no="other") == "b"


async def test_a_host_is_asked_for_with_its_port_or_without(tmp_path: Path) -> None:
    ports = {"v1": port()}
    snapshot = of.snapshot(tmp_path, *cart(ports, of.route("cart", "all", {"v1": 1})))
    async with (
        servers(1) as (one,),
        session() as asking,
        envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running,
    ):
        client = Client(asking, running["front"].egress)
        assert (await client.ask(host="cart.local:80"))[0] == 200
        assert (await client.ask(host="cart.local"))[0] == 200
        assert (await client.ask(host="cart.local:81"))[0] == 404


@pytest.mark.parametrize("egress", ["DROP_ALL", "ALLOW_ALL"])
async def test_what_is_no_backend_is_refused(tmp_path: Path, egress: str) -> None:
    ports = {"v1": port()}
    documents = cart(ports, of.route("cart", "all", {"v1": 1}))
    documents[0] = of.mesh(egress)
    documents.append(of.service("other.local", node="v1"))
    snapshot = of.snapshot(tmp_path, *documents)
    async with (
        servers(1) as (one,),
        session() as asking,
        envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running,
    ):
        client = Client(asking, running["front"].egress)
        status, _ = await client.ask(host="other.local")
        # Nobody redirected this connection, so that there is nowhere it was going.
        assert status == (404 if egress == "DROP_ALL" else 503)
        reader, writer = await asyncio.open_connection("127.0.0.1", running["front"].proxy.egress_port)
        writer.write(b"\x00\x01\x02\x03\x04\x05\x06\x07 not HTTP\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
    assert one.seen == 0


async def test_a_failed_request_is_tried_again(tmp_path: Path) -> None:
    ports = {"v1": port()}
    thrice = {
        "maxRetries": 3,
        "perRetryTimeout": {"unit": "s", "value": 5},
        "httpRetryEvents": ["server-error"],
        "tcpRetryEvents": ["connection-error"],
    }
    routes = [
        of.route("cart", "tried", {"v1": 1}, match={"prefix": "/tried"}, retryPolicy=thrice),
        of.route("cart", "once", {"v1": 1}, match={"prefix": "/once"}, **ONCE),
        of.route("cart", "default", {"v1": 1}, match={"prefix": "/default"}),
    ]
    snapshot = of.snapshot(tmp_path, *cart(ports, *routes))
    async with servers(1) as (one,), session() as asking:
        left: collections.Counter[str] = collections.Counter({"/tried": 3, "/once": 1, "/default": 2})

        async def fails_first(request: web.Request) -> web.Response:
            left[request.path] -= 1
            status = (500 if request.path == "/tried" else 503) if left[request.path] >= 0 else 200
            return web.Response(status=status)

        one.behaviour = fails_first
        async with envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running:
            client = Client(asking, running["front"].egress)
            assert (await client.ask("/tried"))[0] == 200
            assert one.seen == 4
            assert (await client.ask("/once"))[0] == 503
            assert one.seen == 5
            assert (await client.ask("/default"))[0] == 200
            assert one.seen == 8


async def test_a_slow_request_times_out(tmp_path: Path) -> None:
    ports = {"v1": port()}
    quick = {"perRequest": {"unit": "ms", "value": 300}}
    routes = [
        of.route("cart", "quick", {"v1": 1}, match={"prefix": "/quick"}, timeout=quick),
        of.route("cart", "slow", {"v1": 1}),
    ]
    limited = {"http": {"perRequest": {"unit": "ms", "value": 900}}}
    snapshot = of.snapshot(tmp_path, *cart(ports, *routes, timeout=limited))
    async with servers(1) as (one,), session() as asking:

        async def slow(_: web.Request) -> web.Response:
            await asyncio.sleep(20)
            return web.Response()

        one.behaviour = slow
        async with envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running:
            client = Client(asking, running["front"].egress)
            began_s = time.monotonic()
            assert (await client.ask("/quick"))[0] == 504
            assert time.monotonic() - began_s < 5
            assert (await client.ask("/slow"))[0] == 504  # by the timeout of the node's listener
            assert time.monotonic() - began_s < 10


async def test_an_endpoint_that_fails_is_left_out_and_comes_back(tmp_path: Path) -> None:
    at = port()
    terms = {
        "maxServerErrors": 3,
        "interval": {"unit": "ms", "value": 100},
        "baseEjectionDuration": {"unit": "ms", "value": 500},
        "maxEjectionPercent": 50,
    }
    documents = cart({"v1": at}, of.route("cart", "all", {"v1": 1}, **ONCE), outlierDetection=terms)
    snapshot = of.snapshot(tmp_path, *documents)
    async with servers(2) as (one, two), session() as asking:
        endpoints: dict[str, tuple[Endpoint, ...]] = {
            "v1": (Endpoint("127.0.0.1", one.port), Endpoint("127.0.0.1", two.port))
        }
        async with envoys(tmp_path, snapshot, {"front": {}}, endpoints=endpoints) as running:
            client = Client(asking, running["front"].egress)
            two.behaviour = failing
            ejections = f"cluster.cds_egress_shop_v1_http_{at}.outlier_detection.ejections_active"
            await asked_until(client, running["front"], ejections, 1)
            before = two.seen
            assert set(await client.many(100)) == {(200, "a")}
            assert two.seen == before
            two.behaviour = two.answer
            until_s = time.monotonic() + 15
            while two.seen == before:
                assert time.monotonic() < until_s
                await client.many(10, at_once=1)
            seen = await client.many(100)
            assert seen[200, "a"] + seen[200, "b"] == 100
            assert seen[200, "b"] >= 30


async def asked_until(client: Client, envoy: Envoy, gauge: str, value: int) -> None:
    """Ask until a gauge has a value."""
    until_s = time.monotonic() + 15
    while await envoy.counter(gauge) != value:
        assert time.monotonic() < until_s, gauge
        await client.many(10, at_once=1)


async def test_an_endpoint_that_is_down_is_found_by_health_checks(tmp_path: Path) -> None:
    check = {
        "protocol": "http",
        "path": "/healthz",
        "healthyThreshold": 2,
        "unhealthyThreshold": 2,
        "intervalMillis": 5000,
        "timeoutMillis": 2000,
    }
    documents = cart({"v1": port()}, of.route("cart", "all", {"v1": 1}, **ONCE), healthCheck=check)
    snapshot = of.snapshot(tmp_path, *documents)
    async with servers(3) as (one, two, three), session() as asking:
        two.healthy = False
        endpoints: dict[str, tuple[Endpoint, ...]] = {
            "v1": tuple(Endpoint("127.0.0.1", each.port) for each in (one, two, three))
        }
        async with envoys(tmp_path, snapshot, {"front": {}}, endpoints=endpoints) as running:
            seen = await Client(asking, running["front"].egress).many(200)
    assert set(seen) == {(200, "a"), (200, "c")}
    assert two.checks >= 1
    assert two.seen == 0


async def test_connections_to_the_application_are_limited(tmp_path: Path) -> None:
    ports = {"v1": port()}
    pool = {"http": {"maxConnections": 2, "maxPendingRequests": 3}}
    snapshot = of.snapshot(
        tmp_path, *cart(ports, of.route("cart", "all", {"v1": 1}, **ONCE), connectionPool=pool)
    )
    async with servers(1) as (one,), session() as asking:
        gate = asyncio.Event()
        busy = 0
        most = 0

        async def held(_: web.Request) -> web.Response:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await gate.wait()
            busy -= 1
            return web.Response(text="a")

        one.behaviour = held
        async with envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running:
            client = Client(asking, running["front"].egress)
            asked = [asyncio.ensure_future(client.ask()) for _ in range(20)]
            refused = f"cluster.cds_ingress_shop_v1_http_{ports['v1']}.upstream_rq_pending_overflow"
            until_s = time.monotonic() + 15
            while sum(each.done() for each in asked) < 15:
                assert time.monotonic() < until_s
                await asyncio.sleep(0.02)
            assert await running["v1"].counter(refused) == 15
            gate.set()
            statuses = collections.Counter([(await each)[0] for each in asked])
    assert statuses == {200: 5, 503: 15}
    assert most == 2


async def echo(request: web.Request) -> web.Response:
    return web.json_response(
        {"host": request.host, "path": request.path_qs, "headers": dict(request.headers)}
    )


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


async def test_connections_are_passed_on_by_weight(tmp_path: Path) -> None:
    listening = port()
    db = port()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello " + await reader.readline())
        await writer.drain()
        writer.close()

    documents = [
        of.mesh(),
        of.node("front", 8080, backends=("db.local",)),
        of.node("db", db, protocol="tcp"),
        of.router("db", 5432, "tcp"),
        of.route("db", "all", {"db": 1}, kind="tcpRoute"),
        of.service("db.local", router="db"),
    ]
    snapshot = of.snapshot(tmp_path, *documents)
    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    at = server.sockets[0].getsockname()[1]
    async with server:
        applications: dict[str, dict[int, int]] = {"front": {}, "db": {db: at}}
        async with envoys(tmp_path, snapshot, applications, tcp={"db.local": listening}):
            reader, writer = await asyncio.open_connection("127.0.0.1", listening)
            writer.write(b"you\n")
            assert await asyncio.wait_for(reader.read(), 10) == b"hello you\n"
            writer.close()


async def test_requests_are_logged_as_the_node_says(tmp_path: Path) -> None:
    ports = {"v1": port()}
    line = [{"key": "path", "value": "%REQ(:PATH)%"}, {"key": "code", "value": "%RESPONSE_CODE%"}]
    log = tmp_path / "access.log"
    logging = {"logging": {"accessLog": {"file": {"path": str(log), "format": {"json": line}}}}}
    documents = cart(ports, of.route("cart", "all", {"v1": 1}))
    documents[1] = of.node("front", 8080, backends=("cart.local",), more=logging)
    snapshot = of.snapshot(tmp_path, *documents)
    async with (
        servers(1) as (one,),
        session() as asking,
        envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running,
    ):
        await Client(asking, running["front"].egress).ask("/logged")
    assert json.loads(log.read_text()) == {"path": "/logged", "code": 200}


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
async def test_nodes_call_each_other_over_mutual_tls(tmp_path: Path, mode: str) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, of_ca in {"front": authority, "v1": authority, "odd": stranger}.items():
        issued = of_ca.issue_cert(f"{name}.shop.local")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    at = port()

    def certificate(name: str) -> of.Document:
        files = {
            "certificateChain": str(tmp_path / f"{name}.pem"),
            "privateKey": str(tmp_path / f"{name}.key"),
        }
        return {"file": files}

    def validation(*names: str) -> of.Document:
        trust = {"file": {"certificateChain": str(tmp_path / "ca.pem")}}
        return {"trust": trust, "subjectAlternativeNames": {"match": {"exact": names}}}

    def calling(caller: str, certified: str, callee: str) -> of.Document:
        tls = {"certificate": certificate(certified), "validation": validation(callee)}
        more = {"backendDefaults": {"clientPolicy": {"tls": tls}}}
        return of.node(caller, 8080, backends=("cart.local",), more=more)

    asked = {"mode": mode, "certificate": certificate("v1"), "validation": validation("front.shop.local")}
    snapshot = of.snapshot(
        tmp_path,
        *cart({"v1": at}, of.route("cart", "all", {"v1": 1}, **ONCE), tls=asked)[2:],
        of.mesh(),
        calling("front", "front", "v1.shop.local"),
        calling("misled", "front", "v2.shop.local"),
        calling("unknown", "odd", "v1.shop.local"),
        calling("other", "v1", "v1.shop.local"),
        of.node("plain", 8080, backends=("cart.local",)),
    )
    callers = {
        "front": 200,
        "misled": 503,
        "unknown": 503,
        "other": 503,
        "plain": 200 if mode == "PERMISSIVE" else 503,
    }
    async with servers(1) as (one,), session() as asking:
        applications: dict[str, dict[int, int]] = {name: {} for name in callers} | {"v1": {at: one.port}}
        async with envoys(tmp_path, snapshot, applications) as running:
            got = {name: (await Client(asking, running[name].egress).ask())[0] for name in callers}
            encrypted = await running["front"].counter(f"cluster.cds_egress_shop_v1_http_{at}.ssl.handshake")
    assert got == callers
    assert encrypted == 1


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


@contextlib.asynccontextmanager
async def grpc_server(answer: bytes) -> AsyncIterator[int]:
    """Run a server that answers every call; of `shop.Flaky`, one in three."""
    flaky = 0

    async def handle(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
        return answer

    async def fails(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        nonlocal flaky
        flaky += 1
        if flaky < 3:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return answer

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            of_call = fails if details.method.startswith("/shop.Flaky/") else handle
            return grpc.unary_unary_rpc_method_handler(of_call)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    at = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield int(at)
    finally:
        await server.stop(0)
