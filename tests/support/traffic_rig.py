"""A mesh in the App Mesh API, a caller's Envoy that asks it, and `headworks traffic` beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.support import mesh_documents as of
from tests.support.mesh_api import SECRET, MeshApiProcess, mesh_api
from tests.support.mesh_client import cart
from tests.support.mesh_rig import Envoy, port, running
from tests.support.upstream_servers import Server
from tests.support.xds_rig import bootstrapped

HEADWORKS = Path(sys.executable).with_name("headworks")
ROUTE = "mesh/shop/virtualRouter/cart/route/all"
DEADLINE_S = 60.0
BEFORE = {"v1": 100, "v2": 0}
KINDS = {"routeName": "route", "virtualNodeName": "virtual_node", "virtualRouterName": "virtual_router"}
KINDS |= {"virtualServiceName": "virtual_service"}
ORDER = ["mesh", "virtual_node", "virtual_router", "route", "virtual_service"]


class Command:
    """`headworks traffic ...`, which runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    async def until(self, event: str) -> dict[str, Any]:
        """Read events until there is one of a kind."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == event:
                    return self.events[-1]
        raise AssertionError(f"no {event} in {self.events}: {await self.said()}")

    async def ended(self) -> int:
        """Read all events, and return the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
            return await self.process.wait()

    async def said(self) -> str:
        assert self.process.stderr is not None
        return f"{self.events[-3:]} {(await self.process.stderr.read()).decode()}"

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]


class Shifting:
    """`headworks traffic`, of a route that is kept where `kept` says, and of the Envoy of its caller."""

    def __init__(self, front: Envoy, *kept: str) -> None:
        self.front = front
        self._kept = kept

    @property
    def admin(self) -> str:
        return f"127.0.0.1:{self.front.proxy.admin_port}"

    @contextlib.asynccontextmanager
    async def shift(self, *words: str) -> AsyncIterator[Command]:
        """Run a shift to `v2`, in steps of a second."""
        options = [*words, "--json"]
        if "--resume" not in words:
            options += ["--to", "v2", "--look-s", "0.5", *([] if "--step-s" in words else ["--step-s", "1"])]
        if "--prometheus" not in words and "--unwatched" not in words:
            options += ["--envoy", self.admin]
        process = await asyncio.create_subprocess_exec(
            *self._command("shift", *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
        )
        try:
            yield Command(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def run(self, verb: str, *words: str) -> tuple[int, str, str]:
        """Run a command until it ends."""
        process = await asyncio.create_subprocess_exec(
            *self._command(verb, *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
        )
        async with asyncio.timeout(DEADLINE_S):
            out, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), error.decode()

    async def status(self) -> dict[str, Any]:
        _, out, error = await self.run("status", "--json")
        assert out, error
        row: dict[str, Any] = json.loads(out)[0]
        return row

    def _command(self, verb: str, *words: str) -> list[str]:
        return [str(HEADWORKS), "traffic", verb, ROUTE, *self._kept, *words]

    def _environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "AKADMIN", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        return os.environ | keys | {"COLUMNS": "200"}


class Mesh(Shifting):
    """The mesh `shop` in the API, in which `front` calls `cart.local`: `v1`, and as a canary `v2`."""

    def __init__(self, api: MeshApiProcess, front: Envoy) -> None:
        super().__init__(front, "--endpoint-url", api.url)
        self.client = api.client()

    async def weights(self) -> dict[str, int]:
        """Return the weights that the API keeps."""
        names = {"meshName": "shop", "virtualRouterName": "cart", "routeName": "all"}
        got = await asyncio.to_thread(self.client.describe_route, **names)
        targets = got["route"]["spec"]["httpRoute"]["action"]["weightedTargets"]
        return {each["virtualNode"]: each["weight"] for each in targets}

    async def change(self, weights: dict[str, int]) -> None:
        """Change the weights, as somebody else would."""
        await asyncio.to_thread(self.client.update_route, **of.route("cart", "all", weights))


def canary(one: Server, two: Server) -> list[of.Document]:
    """Return a mesh in which `front` calls `cart.local`: `v1`, and not yet `v2`."""
    return cart({"v1": one.port, "v2": two.port}, of.route("cart", "all", BEFORE))


@contextlib.asynccontextmanager
async def meshed(folder: Path, documents: list[of.Document]) -> AsyncIterator[Mesh]:
    """Run the API with some resources, its control plane and the Envoy of `front`."""
    at, socket = port(), folder / "status.sock"
    xds = ["[xds]", f'bind = "127.0.0.1:{at}"', f'status_socket = "{socket}"']
    with mesh_api(folder, *xds) as api:
        named = [(next((KINDS[key] for key in KINDS if key in each), "mesh"), each) for each in documents]
        client = api.client()
        for kind, each in sorted(named, key=lambda pair: ORDER.index(pair[0])):
            await asyncio.to_thread(getattr(client, f"create_{kind}"), **each)
        envoy = bootstrapped(folder, "mesh/shop/virtualNode/front", f"127.0.0.1:{at}")
        with running(envoy) as process:
            await envoy.ready(process)
            yield Mesh(api, envoy)


def failing(server: Server, part: float) -> None:
    """Let a part of what a server is asked fail."""
    chooser = random.Random(1)

    async def behaviour(request: web.Request) -> web.StreamResponse:
        if chooser.random() < part:
            return web.Response(status=500)
        return await server.answer(request)

    server.behaviour = behaviour


def slow(server: Server, seconds: float) -> None:
    """Let a server take its time."""

    async def behaviour(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await server.answer(request)

    server.behaviour = behaviour


@contextlib.asynccontextmanager
async def prometheus(folder: Path, admin: str) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes an Envoy every half second; yields its URL."""
    at = port()
    config = folder / "prometheus.yml"
    scrape = {
        "job_name": "envoy",
        "metrics_path": "/stats/prometheus",
        "static_configs": [{"targets": [admin]}],
    }
    config.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": [scrape]}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{at}", "--log.level=error"]
    url = f"http://127.0.0.1:{at}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
            while True:
                assert process.returncode is None, (folder / "prometheus.log").read_text()
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/-/ready") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.terminate()
        await process.wait()
