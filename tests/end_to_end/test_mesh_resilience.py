"""A mesh whose servers fail: retries, time-outs, ejection, health checks, limits."""

from __future__ import annotations

import asyncio
import collections
import time
from pathlib import Path

import pytest
from aiohttp import web

from routing.mesh.compile.proxy import Endpoint
from tests.support import mesh_documents as of
from tests.support.mesh_client import ONCE, Client, cart, session
from tests.support.mesh_rig import Envoy, envoys, port
from tests.support.upstream_servers import servers

pytestmark = [pytest.mark.end_to_end]


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
            assert await running["v1"].counter(refused) >= 15
            gate.set()
            statuses = collections.Counter([(await each)[0] for each in asked])
    # Who waits for a connection that is still being made waits too: of five, two may be refused at first.
    assert set(statuses) == {200, 503}
    assert 15 <= statuses[503] <= 17
    assert most <= 2


async def failing(_: web.Request) -> web.Response:
    return web.Response(status=503, text="failing")
