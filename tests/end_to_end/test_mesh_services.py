"""The device, data and analytics services in a mesh: the API gateway calls them through Envoys."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from commands.demo.platform import SERVICES, PlatformPorts
from runtime import clock
from tests.support import mesh_documents as of
from tests.support.mesh_rig import Envoy, port, running
from tests.support.platform import JSON, TENANT, Running, certificate_for, platform, platform_ports
from tests.support.xds_rig import ControlPlane, acknowledged, bootstrapped, control_plane

pytestmark = [pytest.mark.end_to_end]


def documents(ports: dict[str, int], doors: dict[str, int]) -> list[of.Document]:
    """Return a mesh whose gateway listens for each service at `doors`, and whose nodes at `ports`."""
    listeners = [{"portMapping": {"port": door, "protocol": "http"}} for door in doors.values()]
    kept = {"prefix": {"defaultPrefix": "DISABLED"}}
    return [
        of.mesh(),
        {"meshName": of.MESH, "virtualGatewayName": "edge", "spec": {"listeners": listeners}},
        *[of.node(name, at) for name, at in ports.items()],
        *[of.service(f"{name}.local", node=name) for name in ports],
        *[
            of.gateway_route("edge", name, f"{name}.local", {"prefix": "/", "port": door}, kept)
            for name, door in doors.items()
        ],
    ]


@contextlib.asynccontextmanager
async def envoys(
    folder: Path, plane: ControlPlane, own: PlatformPorts, ports: dict[str, int]
) -> AsyncIterator[dict[str, Envoy]]:
    server = f"127.0.0.1:{plane.port}"
    made = {"edge": bootstrapped(folder, f"mesh/{of.MESH}/virtualGateway/edge", server)}
    for name, at in ports.items():
        behind = ("--app", f"{at}=127.0.0.1:{getattr(own, name)}")
        made[name] = bootstrapped(folder, f"mesh/{of.MESH}/virtualNode/{name}", server, *behind)
    with contextlib.ExitStack() as stack:
        started = [(envoy, stack.enter_context(running(envoy))) for envoy in made.values()]
        for envoy, process in started:
            await envoy.ready(process)
        yield made


def rolled_up(at: Running, folder: Path, device: str) -> None:
    """Provision a device, send as it, and wait until its roll-up has all of it."""
    credentials, sent_ms = certificate_for(at, folder, device), clock.unix_ms()
    for number in range(10):
        reading = json.dumps({"ts": sent_ms - number, "metrics": {"flow": float(number)}})
        sent = at.curl(*credentials, *JSON, "-d", reading, f"{at.ingest_url}/v1/telemetry/sensors")
        assert sent[0] == 202
    url = f"{at.url}/v1/tenants/{TENANT}/devices/{device}/rollups?metric=flow&window=1h"
    ends_s = time.monotonic() + 30
    while True:
        status, body = at.curl("-H", f"X-API-Key: {at.key}", url)
        if status == 200 and sum(window["count"] for window in json.loads(body)["items"]) == 10:
            return
        assert time.monotonic() < ends_s, (status, body)
        time.sleep(0.1)


@contextlib.asynccontextmanager
async def platform_through(
    folder: Path, own: PlatformPorts, through: dict[int, int]
) -> AsyncIterator[Running]:
    """Run a platform, which has an event loop of its own."""
    await asyncio.to_thread(folder.mkdir)
    made = platform(folder, requests_per_s=0, ports=own, through=through)
    at = await asyncio.to_thread(made.__enter__)
    try:
        yield at
    finally:
        await asyncio.to_thread(made.__exit__, None, None, None)


async def statuses(at: Running, paths: list[str], count: int) -> collections.Counter[int]:
    seen: collections.Counter[int] = collections.Counter()
    connector = aiohttp.TCPConnector(ssl=at.tls())
    async with aiohttp.ClientSession(connector=connector, headers={"X-API-Key": at.key}) as asking:
        for number in range(count):
            async with asking.get(at.url + paths[number % len(paths)]) as answer:
                seen[answer.status] += 1
    return seen


async def test_the_services_work_behind_envoys_and_outlive_their_control_plane(tmp_path: Path) -> None:
    own = platform_ports()
    ports, doors = ({name: port() for name in SERVICES} for _ in range(2))
    served = of.written(tmp_path / "mesh", *documents(ports, doors))
    through = {getattr(own, name): door for name, door in doors.items()}
    async with (
        control_plane(tmp_path, served) as plane,
        envoys(tmp_path, plane, own, ports) as proxies,
        platform_through(tmp_path / "platform", own, through) as at,
    ):
        await plane.until(acknowledged)
        await asyncio.to_thread(rolled_up, at, tmp_path, "pump-7")
        devices = f"/v1/tenants/{TENANT}/devices"
        pump = f"{devices}/pump-7"
        paths = [devices, f"{pump}/rollups?metric=flow&window=1h", f"{pump}/latest".replace("v1", "v2")]
        plane.kill()
        assert await statuses(at, paths, 300) == {200: 300}
        await plane.start()
        await plane.until(acknowledged)
        assert await statuses(at, paths, 300) == {200: 300}
        for name in SERVICES:
            cluster = f"cluster.cds_ingress_{of.MESH}_{name}_http_{ports[name]}"
            assert await proxies[name].counter(f"{cluster}.upstream_rq_2xx") >= 200
