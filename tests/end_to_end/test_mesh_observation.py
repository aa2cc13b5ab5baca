"""What proxies say of a running mesh: statistics a node and a route, access logs, traces."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.support import mesh_documents as of
from tests.support.mesh_client import ONCE, Client, cart, session
from tests.support.mesh_rig import Envoy, envoys, port
from tests.support.trace_collector import Span, collecting
from tests.support.upstream_servers import Server, servers

pytestmark = [pytest.mark.end_to_end]

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
SECRETS = {"authorization": "Bearer s3cret", "cookie": "session=s3cret", "x-api-key": "s3cret"}
DEADLINE_S = 30.0


class Shop(collections.UserDict[str, Envoy]):
    """Running Envoys by name, the servers behind them, and what these got."""

    def __init__(self, asking: aiohttp.ClientSession, edge: int, made: list[Server]) -> None:
        super().__init__()
        self.asking = asking
        self.edge = edge
        self.got: list[Mapping[str, str]] = []
        for server in made:
            server.behaviour = self._answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.got.append(request.headers)
        return web.Response(status=500 if request.path == "/other/bad" else 200)

    @property
    def front(self) -> Client:
        return Client(self.asking, self["front"].egress)

    @property
    def gateway(self) -> Client:
        return Client(self.asking, self["edge"].url(self.edge))

    async def scraped(self, name: str) -> list[tuple[str, Mapping[str, str], float]]:
        """Return the samples that a scraper gets of a proxy."""
        async with self.asking.get(self.stats(name, "/stats/prometheus")) as answer:
            assert answer.status == 200
            families = list(text_string_to_metric_families(await answer.text()))
        return [(each.name, each.labels, each.value) for family in families for each in family.samples]

    def stats(self, name: str, path: str) -> str:
        at = self[name].proxy.stats
        assert at is not None
        return f"http://{at.host}:{at.port}{path}"

    async def counted(self, proxy: str, series: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        return sum(
            value
            for name, has, value in await self.scraped(proxy)
            if name.removesuffix("_total") == series and labels.items() <= has.items()
        )


@contextlib.asynccontextmanager
async def shop(folder: Path, *policies: of.Document, **front: Any) -> AsyncIterator[Shop]:
    """Run a caller and a gateway before a service with two routes, each to a node of its own."""
    ports, edge = {"v1": port(), "v2": port()}, port()
    routes = [
        of.route("cart", "all", {"v1": 1}, **ONCE),
        of.route("cart", "other", {"v2": 1}, match={"prefix": "/other"}, **ONCE),
    ]
    documents = [
        *[each for each in cart(ports, *routes) if each.get("virtualNodeName") != "front"],
        of.node("front", 8080, backends=("cart.local",), more=front),
        of.gateway("edge", edge),
        of.gateway_route("edge", "in", "cart.local", {"prefix": "/"}),
        *policies,
    ]
    async with servers(2) as made, session() as asking:
        applications: dict[str, dict[int, int]] = {"front": {}, "edge": {}}
        applications |= {name: {ports[name]: server.port} for name, server in zip(ports, made, strict=True)}
        found = Shop(asking, edge, made)
        async with envoys(folder, of.snapshot(folder, *documents), applications) as running:
            found.update(running)
            yield found


def written(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def until_written(path: Path, line: str) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while line not in written(path):
        assert time.monotonic() < until_s, written(path)
        time.sleep(0.05)


async def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the lines of an access log, once there are so many."""
    until_s = time.monotonic() + DEADLINE_S
    while len(found := written(path)) < count:
        assert time.monotonic() < until_s, found
        await asyncio.sleep(0.05)
    assert len(found) == count, found
    return [json.loads(line) for line in found]


async def test_a_node_and_a_route_count_what_was_sent(tmp_path: Path) -> None:
    async with shop(tmp_path) as running:
        for path, times in {"/": 5, "/other": 3, "/other/bad": 2}.items():
            for _ in range(times):
                await running.front.ask(path)
        await running.gateway.ask("/other")
        by_route, by_callee = "envoy_vhost_route_upstream_rq_xx", "envoy_cluster_upstream_rq_xx"
        front = {"mesh": "shop", "virtual_node": "front"}
        of_service = {**front, "service": "cart.local:80"}
        bad = {"envoy_response_code_class": "5"}
        assert await running.counted("front", by_route, **of_service, route="cart/all") == 5
        assert await running.counted("front", by_route, **of_service, route="cart/other") == 5
        assert await running.counted("front", by_route, **of_service, route="cart/other", **bad) == 2
        assert await running.counted("front", by_callee, **front, callee="v1", protocol="http") == 5
        assert await running.counted("front", by_callee, **front, callee="v2", **bad) == 2
        edge = {"mesh": "shop", "virtual_gateway": "edge"}
        assert await running.counted("edge", by_route, **edge, route="edge/in", service="gateway") == 1
        assert await running.counted("edge", by_route, **edge, route="cart/other") == 1
        assert await running.counted("v2", by_route, virtual_node="v2", route="v2") == 6
        names = {labels.get("envoy_cluster_name") for _, labels, _ in await running.scraped("v2")}
        assert f"cds_ingress_shop_v2_http_{next(iter(running['v2'].proxy.applications))}" in names


async def test_a_scraper_gets_statistics_and_nothing_else_of_the_admin_port(tmp_path: Path) -> None:
    async with shop(tmp_path) as running:
        answers = {}
        for method, path in [
            ("GET", "/ready"),
            ("GET", "/stats"),
            ("GET", "/config_dump"),
            ("GET", "/stats/prometheus/../../config_dump"),
            ("GET", "/stats/prometheus%2f..%2f..%2fconfig_dump"),
            ("POST", "/quitquitquit"),
            ("POST", "/stats/prometheus"),
        ]:
            url = running.stats("front", path)
            async with running.asking.request(method, url, allow_redirects=False) as answer:
                answers[method, path] = answer.status
        assert answers.pop(("GET", "/ready")) == 200
        assert set(answers.values()) == {404}


async def test_prometheus_scrapes_the_proxies(tmp_path: Path) -> None:
    async with shop(tmp_path) as running:
        for _ in range(7):
            await running.front.ask("/other")
        targets = [running.stats(name, "").removeprefix("http://") for name in running]
        scrape = {
            "job_name": "mesh",
            "metrics_path": "/stats/prometheus",
            "scrape_interval": "1s",
            "static_configs": [{"targets": targets}],
        }
        query = 'envoy_vhost_route_upstream_rq_xx{route="cart/other",virtual_node="front"}'
        with prometheus(tmp_path, scrape) as at:
            until_s = time.monotonic() + DEADLINE_S
            while (got := await asked(running.asking, at, query)) != [7.0]:
                assert time.monotonic() < until_s, (got, written(tmp_path / "prometheus.log"))
                await asyncio.sleep(0.2)
            while (got := await asked(running.asking, at, "count(up == 1)")) != [len(targets)]:
                assert time.monotonic() < until_s, got
                await asyncio.sleep(0.2)


@contextlib.contextmanager
def prometheus(folder: Path, scrape: of.Document) -> Iterator[str]:
    """Run a Prometheus, and yield where it is."""
    config, at = folder / "prometheus.json", f"127.0.0.1:{port()}"
    config.write_text(json.dumps({"scrape_configs": [scrape]}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command.append(f"--web.listen-address={at}")
    log = (folder / "prometheus.log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield at
        finally:
            process.terminate()


async def asked(asking: aiohttp.ClientSession, at: str, query: str) -> list[float]:
    """Return the values that a Prometheus has for a query; none while it does not answer."""
    try:
        async with asking.get(f"http://{at}/api/v1/query", params={"query": query}) as answer:
            found = (await answer.json())["data"]["result"] if answer.status == 200 else []
    except aiohttp.ClientError:
        return []
    return [float(each["value"][1]) for each in found]


async def test_a_line_of_the_access_log_has_the_trace_that_the_application_got(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with collecting() as collector:
        tracing = of.policy("traced", tracing={"collector": collector.address, "percent": 100})
        seen = of.policy("seen", accessLog={"path": str(log)})
        async with shop(tmp_path, tracing, seen) as running:
            await running.front.ask("/other/bad?token=s3cret", headers={**TRACED, **SECRETS})
            both = {line["proxy"]: line for line in await lines(log, 2)}
    front, node = both["virtualNode/front"], both["virtualNode/v2"]
    (headers,) = running.got
    version, trace_id, span_id, sampled = headers["traceparent"].split("-")
    assert (version, trace_id, sampled) == ("00", TRACE, "01")
    assert front["trace_id"] == node["trace_id"] == TRACE
    assert node["span_id"] == span_id != front["span_id"]
    assert front["request_id"] == node["request_id"] == headers["x-request-id"]
    assert (front["route"], front["callee"], node["route"]) == ("cart/other", "v2", "v2")
    for line in both.values():
        assert (line["mesh"], line["method"], line["path"]) == ("shop", "GET", "/other/bad")
        assert (line["status"], line["flags"], line["bytes_sent"]) == (500, "-", 0)
        assert line["duration_ms"] >= 0
    assert "s3cret" not in log.read_text()


async def test_a_node_that_has_app_meshs_access_log_has_that_alone(tmp_path: Path) -> None:
    general, own, text = tmp_path / "access.log", tmp_path / "own.log", tmp_path / "text.log"
    logging = {"accessLog": {"file": {"path": str(text), "format": {"text": "%RESPONSE_CODE%"}}}}
    policies = [
        of.policy("all", accessLog={"path": str(general)}),
        of.policy("one", "virtualNode/v2", accessLog={"path": str(own), "format": "JSON"}),
    ]
    async with shop(tmp_path, *policies, logging=logging) as running:
        await running.front.ask("/other")
        (line,) = await lines(own, 1)
        assert line["proxy"] == "virtualNode/v2"
        await asyncio.to_thread(until_written, text, "200")
        assert not written(general)


async def test_spans_of_two_proxies_are_one_trace(tmp_path: Path) -> None:
    async with collecting() as collector:
        tracing = {"collector": collector.address, "percent": 100}
        own = of.policy("own", "virtualNode/v2", tracing={**tracing, "serviceName": "cart-two"})
        async with shop(tmp_path, of.policy("all", tracing=tracing), own) as running:
            await running.front.ask("/other/bad?token=s3cret", headers=SECRETS)
            spans = await collector.until(lambda found: len(found) == 2)
            (headers,) = running.got
    by_service = {span.service: span for span in spans}
    caller, callee = by_service["front"], by_service["cart-two"]
    assert caller.trace_id == callee.trace_id == headers["traceparent"].split("-")[1]
    assert (caller.parent, callee.parent) == ("", caller.span_id)
    assert (caller.name, callee.name) == ("cart/other", "v2")
    assert (caller.attributes["mesh.callee"], caller.attributes["url.path"]) == ("v2", "/other/bad")
    assert caller.attributes["http.status_code"] == "500"
    assert "s3cret" not in str(spans)


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_gateway_goes_on_with_traces_of_callers_only_where_it_trusts_them(
    tmp_path: Path, trusted: bool
) -> None:
    async with collecting() as collector:
        edge: of.Document = {"collector": collector.address, "percent": 100, "trustCallers": trusted}
        policy = of.policy("edge", "virtualGateway/edge", tracing=edge)
        async with shop(tmp_path, policy) as running:
            await running.gateway.ask("/", headers=TRACED)
            (span,) = await collector.until(lambda found: len(found) == 1)
            (headers,) = running.got
    assert span.service == "edge"
    assert (span.trace_id == TRACE) is trusted
    assert headers["traceparent"].split("-")[1] == span.trace_id


async def test_who_samples_nothing_goes_on_with_what_its_caller_samples(tmp_path: Path) -> None:
    async with collecting() as collector:
        policy = of.policy("none", tracing={"collector": collector.address, "percent": 0})
        async with shop(tmp_path, policy) as running:
            for _ in range(20):
                await running.front.ask("/")
            await running.front.ask("/", headers=TRACED)
            spans: list[Span] = await collector.until(lambda found: len(found) >= 2)
    assert {span.trace_id for span in spans} == {TRACE}
    assert {headers["traceparent"].split("-")[3] for headers in running.got[:-1]} == {"00"}
