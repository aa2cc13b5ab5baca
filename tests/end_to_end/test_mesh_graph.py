"""The drawing of a mesh that runs: by what its Envoys count, and by Prometheus."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from commands.mesh import app
from tests.support import mesh_documents as of
from tests.support.mesh_client import ONCE, cart, loaded, session
from tests.support.traffic_rig import prometheus
from tests.support.upstream_servers import servers
from tests.support.xds_rig import control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="Prometheus is not possible here: install Debian's prometheus",
)
FRONT = "mesh/shop/virtualNode/front"


async def run(*words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["graph", *words])


async def test_rates_and_failures_are_those_of_the_proxies(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        ports = {"v1": one.port, "v2": two.port}
        route = of.route("cart", "all", {"v1": 1, "v2": 1}, **ONCE)
        folder = of.written(tmp_path / "mesh", *cart(ports, route))
        async with (
            control_plane(tmp_path, folder) as plane,
            proxied(tmp_path, plane, FRONT) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await load.more(20)
            await two.kill()
            words = ["--envoy", f"front=127.0.0.1:{envoy.proxy.admin_port}", "--seconds", "3"]
            said = await run(str(folder), *words, "--json")
            assert said.exit_code == 0, said.output
            calls = {each["callee"].partition("/")[2]: each for each in json.loads(said.stdout)["calls"]}
            assert calls["v1"]["per_s"] > 10
            assert calls["v1"]["failed"] == 0
            assert calls["v2"]["failed"] > 0.9
            assert calls["v2"]["share"] == 0.5
            out = tmp_path / "mesh.svg"
            assert (await run(str(folder), *words, "--output", str(out))).exit_code == 0
            assert "% fail" in out.read_text()


async def test_without_proxies_it_is_the_mesh_alone(tmp_path: Path) -> None:
    folder = of.written(tmp_path / "mesh", *cart({"v1": 9001}, of.route("cart", "all", {"v1": 1})))
    said = await run(str(folder))
    assert said.exit_code == 0
    assert said.stdout.startswith("<svg")
    gone = await run(str(folder), "--envoy", "front=127.0.0.1:1")
    assert (gone.exit_code, "127.0.0.1:1" in gone.stderr) == (1, True)
    for words in (["--envoy", "nobody=127.0.0.1:1"], ["--mesh", "other"], ["--envoy", "front"]):
        assert (await run(str(folder), *words)).exit_code == 2
    assert (await run(str(folder), "--prometheus", "http://127.0.0.1:1")).exit_code == 1


@needs_prometheus
async def test_prometheus_says_it_too(tmp_path: Path) -> None:
    async with servers(1) as (one,), session() as asking:
        folder = of.written(tmp_path / "mesh", *cart({"v1": one.port}, of.route("cart", "all", {"v1": 1})))
        async with (
            control_plane(tmp_path, folder) as plane,
            proxied(tmp_path, plane, FRONT) as envoy,
            prometheus(tmp_path, f"127.0.0.1:{envoy.proxy.admin_port}") as url,
            loaded(asking, envoy.egress),
        ):
            async with asyncio.timeout(60):
                while True:
                    said = await run(str(folder), "--prometheus", url, "--seconds", "5", "--json")
                    assert said.exit_code == 0, said.output
                    (call,) = json.loads(said.stdout)["calls"]
                    if call.get("per_s", 0) > 10 and call["p99_ms"] is not None:
                        break
            assert call["failed"] == 0
