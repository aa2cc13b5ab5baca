"""Nodes in AWS Cloud Map: instances come and go under requests, and nobody is called who is not there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support import mesh_documents as of
from tests.support.cloud_map import NAMESPACE, REGION, CloudMap, cloud_map, unsteady
from tests.support.gateway import free_port
from tests.support.mesh_api import mesh_api
from tests.support.mesh_client import Client, Load, loaded, session
from tests.support.mesh_rig import running
from tests.support.upstream_servers import servers
from tests.support.xds_rig import ControlPlane, bootstrapped, control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
FRONT = "mesh/shop/virtualNode/front"
CHECK = {
    "protocol": "http",
    "path": "/healthz",
    "healthyThreshold": 2,
    "unhealthyThreshold": 2,
    "intervalMillis": 5000,
    "timeoutMillis": 2000,
}


def in_cloud_map(name: str, service: str, *, checked: bool = True, **attributes: str) -> of.Document:
    found = {"namespaceName": NAMESPACE, "serviceName": service}
    pairs = [{"key": key, "value": value} for key, value in attributes.items()]
    discovery = {"awsCloudMap": found | ({"attributes": pairs} if pairs else {})}
    check: dict[str, Any] = {"healthCheck": CHECK} if checked else {}
    return of.node(name, 9080, more={"serviceDiscovery": discovery}, **check)


def shop(folder: Path, *nodes: of.Document, **weights: int) -> Path:
    documents = [
        of.mesh(),
        of.node("front", 8080, backends=("cart.local",)),
        of.service("cart.local", router="cart"),
        of.router("cart"),
        of.route("cart", "all", weights),
        *nodes,
    ]
    return of.written(folder / "mesh", *documents)


def asking_it(at: CloudMap, url: str = "") -> list[str]:
    words = ["--cloud-map-region", REGION, "--cloud-map-endpoint", url or at.url]
    return [*words, "--cloud-map-poll-s", "0.2"]


async def test_instances_come_and_go_under_requests(tmp_path: Path) -> None:
    async with servers(3) as (one, two, three), session() as asking:
        with cloud_map(tmp_path) as at:
            at.service("cart")
            served = shop(tmp_path, in_cloud_map("cart", "cart"), cart=1)
            async with (
                control_plane(tmp_path, served, *asking_it(at)) as plane,
                proxied(tmp_path, plane, FRONT) as envoy,
            ):
                client = Client(asking, envoy.egress)
                assert (await client.ask())[0] == 503  # nobody is there, and nobody is called
                await asyncio.to_thread(at.register, "cart", "i-1", one.port)
                async with asyncio.timeout(30):
                    while (await client.ask())[0] != 200:
                        await asyncio.sleep(0.05)
                async with loaded(asking, envoy.egress) as load:
                    await load.until("a")
                    await asyncio.to_thread(at.register, "cart", "i-2", two.port)
                    await load.until("b")
                    await asyncio.to_thread(at.deregister, "cart", "i-1")
                    await gone(load, "a")
                    await asyncio.to_thread(at.register, "cart", "i-3", three.port)
                    await load.until("c")
                    await asyncio.to_thread(at.health, "cart", "i-2", "UNHEALTHY")
                    await gone(load, "b")
                    at.kill()
                    await said(plane, "mesh_discovery_failed")
                    await load.more(100)
                    assert load.last == "c"
                    assert load.failed() == {}
                assert plane.log.read_text().count("mesh_discovery_failed") == 1


async def gone(load: Load, name: str) -> None:
    """Wait until an endpoint is not asked any more, however well it is."""
    async with asyncio.timeout(30):
        while True:
            before = load.seen[200, name]
            await load.more(40)
            if load.seen[200, name] == before:
                return


async def said(plane: ControlPlane, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in plane.log.read_text():
            await asyncio.sleep(0.05)


async def test_attributes_tell_versions_of_a_service_apart(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        with cloud_map(tmp_path) as at:
            at.register("cart", "i-1", one.port, version="1")
            at.register("cart", "i-2", two.port, version="2")
            nodes = [in_cloud_map(f"v{number}", "cart", version=str(number)) for number in (1, 2)]
            served = shop(tmp_path, *nodes, v1=3, v2=1)
            async with (
                control_plane(tmp_path, served, *asking_it(at)) as plane,
                proxied(tmp_path, plane, FRONT) as envoy,
            ):
                client = Client(asking, envoy.egress)
                async with asyncio.timeout(30):
                    while {(await client.ask())[0] for _ in range(20)} != {200}:
                        await asyncio.sleep(0.05)
                seen = await client.many(400)
                assert sum(seen.values()) == seen[200, "a"] + seen[200, "b"] == 400
                assert 230 <= seen[200, "a"] <= 365  # three of four


async def test_what_is_given_counts_before_what_is_found(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        with cloud_map(tmp_path) as at:
            at.register("cart", "i-1", one.port)
            served = shop(tmp_path, in_cloud_map("cart", "cart", checked=False), cart=1)
            given = tmp_path / "endpoints.json"
            given.write_text(f'{{"cart": ["127.0.0.1:{two.port}"]}}')
            words = [*asking_it(at), "--endpoints", str(given)]
            async with (
                control_plane(tmp_path, served, *words) as plane,
                proxied(tmp_path, plane, FRONT) as envoy,
                loaded(asking, envoy.egress) as load,
            ):
                await load.until("b")
                await said(plane, "mesh_discovered")
                given.write_text("{}")
                await load.until("a")
                assert load.failed() == {}


async def test_a_request_in_progress_ends_well_when_its_endpoint_goes(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        begun, go = asyncio.Event(), asyncio.Event()
        usual = one.answer

        async def first_is_slow(request: web.Request) -> web.StreamResponse:
            if not begun.is_set():
                begun.set()
                await go.wait()
            return await usual(request)

        one.behaviour = first_is_slow
        with cloud_map(tmp_path) as at:
            at.register("cart", "i-1", one.port)
            served = shop(tmp_path, in_cloud_map("cart", "cart"), cart=1)
            async with (
                control_plane(tmp_path, served, *asking_it(at)) as plane,
                proxied(tmp_path, plane, FRONT) as envoy,
                asyncio.TaskGroup() as tasks,
            ):
                client = Client(asking, envoy.egress)
                async with asyncio.timeout(30):
                    while not begun.is_set():
                        first = tasks.create_task(client.ask())
                        await asyncio.sleep(0.2)
                await asyncio.to_thread(at.register, "cart", "i-2", two.port)
                await asyncio.to_thread(at.deregister, "cart", "i-1")
                async with asyncio.timeout(30):
                    while {(await client.ask())[1][:1] for _ in range(10)} != {"b"}:
                        await asyncio.sleep(0.1)
                go.set()
                status, text = await first
                assert (status, text[:1]) == (200, "a")


async def test_what_was_found_last_holds_while_cloud_map_throttles(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        with cloud_map(tmp_path) as at:
            at.register("cart", "i-1", one.port)
            served = shop(tmp_path, in_cloud_map("cart", "cart"), cart=1)
            async with (
                unsteady(at) as (before, cloud),
                control_plane(tmp_path, served, *asking_it(at, f"http://{before.address}")) as plane,
                proxied(tmp_path, plane, FRONT) as envoy,
                loaded(asking, envoy.egress) as load,
            ):
                await load.until("a")
                cloud.throttling = True
                await said(plane, "mesh_discovery_failed")
                await asyncio.to_thread(at.register, "cart", "i-2", two.port)
                await load.more(100)
                assert load.last == "a"
                cloud.throttling = False
                await load.until("b")
                assert load.failed() == {}
            log = plane.log.read_text()
            assert log.count("mesh_discovery_failed") == log.count("mesh_discovery_recovered") == 1


async def test_nodes_of_the_api_are_looked_up_in_two_regions(tmp_path: Path) -> None:
    away = "eu-west-1"
    with cloud_map(tmp_path) as at:
        at.service("cart")
        beside = at.beside(away)
        port = free_port()
        xds = ["[xds]", f'bind = "127.0.0.1:{port}"', f'status_socket = "{tmp_path / "status.sock"}"']
        xds += [f'cloud_map_regions = ["{REGION}", "{away}"]', f'cloud_map_endpoint = "{at.url}"']
        async with servers(2) as (one, two), session() as asking:
            with mesh_api(tmp_path, *xds, "cloud_map_poll_s = 0.2") as api:
                client = api.client()
                mesh, front, service, node = (
                    of.mesh(),
                    of.node("front", 8080, backends=("cart.local",)),
                    of.service("cart.local", node="cart"),
                    in_cloud_map("cart", "cart", checked=False),
                )
                await asyncio.to_thread(client.create_mesh, **mesh)
                for each in (front, node):
                    await asyncio.to_thread(client.create_virtual_node, **each)
                await asyncio.to_thread(client.create_virtual_service, **service)
                envoy = bootstrapped(tmp_path, FRONT, f"127.0.0.1:{port}")
                with running(envoy) as process:
                    await envoy.ready(process)
                    await asyncio.to_thread(beside.register, "cart", "i-2", two.port)
                    async with asyncio.timeout(30):
                        while (await Client(asking, envoy.egress).ask())[1][:1] != "b":
                            await asyncio.sleep(0.05)
                    async with loaded(asking, envoy.egress) as load:
                        await asyncio.to_thread(at.register, "cart", "i-1", one.port)
                        await load.until("a")
                        await asyncio.to_thread(beside.deregister, "cart", "i-2")
                        await gone(load, "b")
                        assert load.failed() == {}
                assert api.end() == 0


async def test_a_control_plane_that_cannot_ask_leaves_proxies_what_they_have(tmp_path: Path) -> None:
    async with servers(1) as (one,), session() as asking:
        with cloud_map(tmp_path) as at:
            at.register("cart", "i-1", one.port)
            served = shop(
                tmp_path, in_cloud_map("cart", "cart"), in_cloud_map("new", "missing"), cart=1, new=0
            )
            async with (
                control_plane(tmp_path, served, *asking_it(at)) as plane,
                proxied(tmp_path, plane, FRONT) as envoy,
                loaded(asking, envoy.egress) as load,
            ):
                await load.until("a")
                before = load.seen.copy()
                at.kill()
                plane.kill()
                await plane.start()
                await said(plane, "mesh_discovery_failed")
                await said(plane, "has not answered yet")
                await load.more(200)
                assert {key for key, count in load.seen.items() if count > before[key]} == {(200, "a")}
