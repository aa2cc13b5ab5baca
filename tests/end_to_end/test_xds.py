"""Real Envoys that ask a real control plane: what changes reaches them, and no request fails for it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from commands.mesh import app
from tests.support import mesh_documents as of
from tests.support.mesh_client import cart, loaded, session
from tests.support.upstream_servers import servers
from tests.support.xds_peer import Files, ends_with
from tests.support.xds_rig import acknowledged, bootstrapped, control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
FRONT = "mesh/shop/virtualNode/front"
VARIANTS = pytest.mark.parametrize("variant", ["--delta", "--no-delta"])
BROKEN = {"path": {"regex": "("}}
"""A match that only Envoy knows to be none."""


def write(folder: Path, ports: dict[str, int], weights: dict[str, int], *more: of.Document) -> Path:
    """Write a mesh whole, as an editor does: beside, and then in its place."""
    folder.mkdir(exist_ok=True)
    documents = cart(ports, of.route("cart", "all", weights), *more)
    (folder / "new").write_text(json.dumps(documents))
    (folder / "new").rename(folder / "mesh.json")
    return folder


def found(folder: Path, **nodes: int) -> str:
    path = folder / "endpoints.json"
    path.write_text(json.dumps({name: [f"127.0.0.1:{at}"] for name, at in nodes.items()}))
    return str(path)


@VARIANTS
async def test_traffic_follows_a_change_without_a_failed_request(tmp_path: Path, variant: str) -> None:
    async with servers(3) as (one, two, three), session() as asking:
        ports = {"v1": one.port, "v2": two.port}
        served = write(tmp_path / "mesh", ports, {"v1": 1})
        endpoints = found(tmp_path, v1=one.port, v2=two.port)
        async with (
            control_plane(tmp_path, served, "--endpoints", endpoints) as plane,
            proxied(tmp_path, plane, FRONT, variant) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await load.until("a")
            write(served, ports, {"v2": 1})  # a cluster that is new to it, and one that goes
            await load.until("b")
            write(served, ports, {"v1": 1, "v2": 1})
            await load.until("a")
            await plane.until(acknowledged)
            clusters = await envoy.counter("cluster_manager.cds.update_success")
            listeners = await envoy.counter("listener_manager.lds.update_success")
            write(served, ports, {"v2": 1, "v1": 0})
            found(tmp_path, v1=one.port, v2=three.port)  # endpoints alone
            await load.until("c")
            await load.more(200)
            await plane.until(acknowledged)
            assert await envoy.counter("cluster_manager.cds.update_success") == clusters
            assert await envoy.counter("listener_manager.lds.update_success") == listeners
            assert load.failed() == {}


@VARIANTS
async def test_what_envoy_refuses_is_shown_and_the_last_good_runs_on(tmp_path: Path, variant: str) -> None:
    async with servers(2) as (one, two), session() as asking:
        ports = {"v1": one.port, "v2": two.port}
        served = write(tmp_path / "mesh", ports, {"v1": 1})
        async with (
            control_plane(tmp_path, served) as plane,
            proxied(tmp_path, plane, FRONT, variant) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            good = {row.type: row.version for row in await plane.until(acknowledged)}
            write(served, ports, {"v2": 1}, of.route("cart", "bad", {"v2": 1}, match=BROKEN))
            rows = await plane.until(lambda rows: any(row.state == "NACKED" for row in rows))
            (refused,) = (row for row in rows if row.state == "NACKED")
            assert (refused.node, refused.type) == (FRONT, "RouteConfiguration")
            assert refused.version == good["RouteConfiguration"]
            assert refused.error == "missing ): ("
            said = await asyncio.to_thread(
                CliRunner().invoke, app, ["status", "--status-socket", str(plane.socket), "--json"]
            )
            assert {"NACKED", "ACKED"} == {row["state"] for row in json.loads(said.stdout)}
            await load.more(50)
            assert load.last == "a"
            write(served, ports, {"v2": 1})
            await load.until("b")
            await plane.until(acknowledged)
            assert load.failed() == {}


@VARIANTS
async def test_the_control_plane_may_be_killed_and_come_again(tmp_path: Path, variant: str) -> None:
    async with servers(2) as (one, two), session() as asking:
        ports = {"v1": one.port, "v2": two.port}
        served = write(tmp_path / "mesh", ports, {"v1": 1})
        endpoints = found(tmp_path, v1=one.port, v2=two.port)
        async with (
            control_plane(tmp_path, served, "--endpoints", endpoints) as plane,
            proxied(tmp_path, plane, FRONT, variant) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await plane.until(acknowledged)
            plane.kill()
            await load.more(100)
            if variant == "--delta":  # the proxy says what it holds, and nothing of it goes too early
                write(served, ports, {"v2": 1})
            await plane.start()
            await plane.until(acknowledged)
            write(served, ports, {"v2": 1})
            await load.until("b")
            await plane.until(acknowledged)
            await load.more(100)
            assert load.failed() == {}
            assert plane.stop() == 0
            await load.more(100)
            assert load.failed() == {}
            await plane.start()


async def test_a_folder_that_is_wrong_is_not_served(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        ports = {"v1": one.port, "v2": two.port}
        served = write(tmp_path / "mesh", ports, {"v1": 1})
        async with (
            control_plane(tmp_path, served) as plane,
            proxied(tmp_path, plane, FRONT) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await load.until("a")
            write(served, ports, {"nobody": 1})
            async with asyncio.timeout(20):
                while "mesh_not_reloaded" not in plane.log.read_text():
                    await asyncio.sleep(0.05)
            await load.more(50)
            assert load.last == "a"
            write(served, ports, {"v2": 1})
            await load.until("b")
            assert load.failed() == {}


async def test_a_certificate_gets_its_own_node_and_no_other(tmp_path: Path) -> None:
    files, stranger = Files(tmp_path), Files(tmp_path / "stranger")
    async with servers(1) as (one,), session() as asking:
        served = write(tmp_path / "mesh", {"v1": one.port}, {"v1": 1})
        words = [*files.server(), "--trust-domain", "shop.example"]
        async with control_plane(tmp_path, served, *words) as plane:
            mine = files.client(f"spiffe://shop.example/{FRONT}")
            async with (
                proxied(tmp_path, plane, FRONT, *mine) as envoy,
                loaded(asking, envoy.egress) as load,
            ):
                await load.until("a")
                await plane.until(acknowledged)
            assert plane.socket.stat().st_mode & 0o077 == 0
            envoy = bootstrapped(tmp_path, FRONT, f"127.0.0.1:{plane.port}")
            node = json.loads(envoy.config.read_text())["node"]
            for other in ("spiffe://shop.example/mesh/shop/virtualNode/v1", f"spiffe://else/{FRONT}"):
                code = await ends_with(plane.port, files.client(other), node)
                assert code is grpc.StatusCode.PERMISSION_DENIED
            theirs = stranger.client(f"spiffe://shop.example/{FRONT}")
            assert await ends_with(plane.port, [*theirs[:5], mine[5]], node) is grpc.StatusCode.UNAVAILABLE
