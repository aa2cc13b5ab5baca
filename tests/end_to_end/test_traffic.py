"""Canaries before real Envoys: promoted, rolled back, aborted, and left alone where somebody else is."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.support import mesh_documents as of
from tests.support.mesh_client import loaded, session
from tests.support.mesh_rig import Envoy
from tests.support.traffic_rig import BEFORE, Shifting, canary, failing, meshed, prometheus, slow
from tests.support.upstream_servers import servers
from tests.support.xds_rig import control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed: make setup, or apt-get install it",
)


async def test_a_good_canary_is_promoted_without_a_failed_request(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking, meshed(tmp_path, canary(one, two)) as mesh:
        async with loaded(asking, mesh.front.egress) as load:
            words = ["--steps", "10,50,100", "--samples-min", "50", "--envoy", "127.0.0.1:1"]
            async with mesh.shift(*words) as shift:
                assert await shift.ended() == 0, await shift.said()
            await load.until("b")
        steps = [each["weights"] for each in shift.of("step")]
        assert steps == [{"v1": 90, "v2": 10}, {"v1": 50, "v2": 50}, {"v1": 0, "v2": 100}]
        assert await mesh.weights() == {"v1": 0, "v2": 100}
        assert load.failed() == {}
        assert all("127.0.0.1:1: " in each["why"] for each in shift.of("unavailable"))
        code, out, _ = await mesh.run("status")
        assert (code, "promoted" in out) == (0, True), out


async def test_a_canary_that_fails_is_rolled_back_before_many_hear_of_it(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking, meshed(tmp_path, canary(one, two)) as mesh:
        failing(two, 0.05)
        async with loaded(asking, mesh.front.egress) as load:
            await load.more(100)
            async with mesh.shift("--steps", "20,100", "--samples-min", "5000") as shift:
                assert await shift.ended() == 1, await shift.said()
            (end,) = shift.of("rolled_back")
            assert "of the baseline's" in end["why"]
        assert await mesh.weights() == BEFORE
        assert len(shift.of("step")) == 1
        assert 0 < sum(load.failed().values()) < 0.02 * load.seen.total()
        assert (await mesh.status())["state"] == "rolled_back"


@needs_prometheus
async def test_a_slow_canary_is_rolled_back_by_what_prometheus_knows(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking, meshed(tmp_path, canary(one, two)) as mesh:
        slow(two, 0.2)
        async with prometheus(tmp_path, mesh.admin) as url, loaded(asking, mesh.front.egress) as load:
            await load.more(100)
            words = ["--steps", "20,100", "--latency-p99-max-ms", "100", "--prometheus", url]
            async with mesh.shift(*words, "--samples-min", "50000") as shift:
                assert await shift.ended() == 1, await shift.said()
            (end,) = shift.of("rolled_back")
            assert "requests took more than 100 ms, 1% may" in end["why"]
        assert await mesh.weights() == BEFORE
        assert load.failed() == {}


@needs_prometheus
async def test_a_canary_is_promoted_by_what_prometheus_knows(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking, meshed(tmp_path, canary(one, two)) as mesh:
        async with prometheus(tmp_path, mesh.admin) as url, loaded(asking, mesh.front.egress) as load:
            words = ["--steps", "50,100", "--latency-p99-ratio-max", "50", "--prometheus", url]
            async with mesh.shift(*words, "--samples-min", "50") as shift:
                assert await shift.ended() == 0, await shift.said()
            await load.until("b")
        assert load.failed() == {}


async def test_a_shift_that_was_killed_is_stalled_resumed_and_aborted(tmp_path: Path) -> None:
    async with servers(2) as (one, two), meshed(tmp_path, canary(one, two)) as mesh:
        async with mesh.shift("--steps", "30,100", "--step-s", "600") as shift:
            await shift.until("look")
            shift.process.kill()
        assert await mesh.weights() == {"v1": 70, "v2": 30}
        async with asyncio.timeout(60):
            while (await mesh.status())["state"] != "stalled":
                await asyncio.sleep(0.5)
        assert (await mesh.run("status"))[0] == 3
        async with mesh.shift("--resume") as again:
            step = await again.until("step")
            assert step["weights"] == {"v1": 70, "v2": 30}
            await again.until("look")
            async with session() as asking, loaded(asking, mesh.front.egress) as load:
                await load.more(50)
                code, out, error = await mesh.run("abort")
                await load.more(50)
                assert load.failed() == {}
            assert (code, out) == (0, "aborted: v1 100, v2 0\n"), error
            assert await again.ended() == 3
        assert "took it over" in again.of("stopped")[0]["why"]
        assert await mesh.weights() == BEFORE


async def test_a_shift_is_alone_at_its_route_and_restores_it_when_interrupted(tmp_path: Path) -> None:
    async with servers(2) as (one, two), meshed(tmp_path, canary(one, two)) as mesh:
        async with mesh.shift("--steps", "30,100", "--step-s", "600") as shift:
            await shift.until("look")
            assert (await mesh.status())["state"] == "running"
            code, _, error = await mesh.run("shift", "--to", "v2", "--envoy", mesh.admin)
            assert (code, "shifts at this route already: it is running" in error) == (3, True), error
            code, _, error = await mesh.run("shift", "--resume", "--envoy", mesh.admin)
            assert (code, "it cannot be resumed: it is running" in error) == (3, True), error
            shift.process.send_signal(signal.SIGTERM)
            assert await shift.ended() == 3
        assert shift.of("aborted")
        assert await mesh.weights() == BEFORE


async def test_what_somebody_else_changes_is_not_overwritten(tmp_path: Path) -> None:
    async with servers(2) as (one, two), meshed(tmp_path, canary(one, two)) as mesh:
        async with mesh.shift("--steps", "30,100", "--unwatched") as shift:
            await shift.until("step")
            await mesh.change({"v1": 1, "v2": 1})
            assert await shift.ended() == 3
        (end,) = shift.of("stopped")
        assert end["why"] == "somebody else changed the route; it has v1 1, v2 1"
        assert await mesh.weights() == {"v1": 1, "v2": 1}


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    async with servers(2) as (one, two), meshed(tmp_path, canary(one, two)) as mesh:
        words = ["--to", "v2", "--envoy", mesh.admin, "--success-min", "0.99", "--dry-run"]
        code, out, error = await mesh.run("shift", *words)
        assert code == 0, error
        assert "step 2 of 4: v1 75, v2 25 (25.0% of all)" in out
        assert "at least 99.000% of its requests succeed" in out
        assert f"http://{mesh.admin}/stats/prometheus?filter=" in out
        assert "1 proxies answer; nothing is changed" in out
        assert await mesh.weights() == BEFORE
        assert (await mesh.status())["state"] == "none"


async def test_a_canary_of_a_folder_is_promoted_where_its_weights_stand(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        place = of.written(tmp_path / "shop", *canary(one, two))
        async with (
            control_plane(tmp_path, place) as plane,
            proxied(tmp_path, plane, "mesh/shop/virtualNode/front") as front,
            loaded(asking, front.egress) as load,
        ):
            mesh = Shifting(front, "--place", str(place))
            async with mesh.shift("--steps", "20,100", "--samples-min", "20") as shift:
                assert await shift.ended() == 0, await shift.said()
            await load.until("b")
            assert (await mesh.status())["weights"] == "v1 0, v2 100"
        assert load.failed() == {}


async def test_a_canary_of_grpc_is_rolled_back_by_its_statuses(tmp_path: Path) -> None:
    async with grpc_server(0) as one, grpc_server(0.05) as two:
        documents = [
            of.mesh(),
            of.node("front", 8080, protocol="grpc", backends=("cart.local",)),
            of.service("cart.local", router="cart"),
            of.router("cart", 80, "grpc"),
            *[of.node(name, at, protocol="grpc") for name, at in {"v1": one, "v2": two}.items()],
            of.route("cart", "all", BEFORE, kind="grpcRoute", match={}),
        ]
        async with meshed(tmp_path, documents) as mesh, calling(mesh.front) as statuses:
            async with mesh.shift("--steps", "20,100", "--samples-min", "5000") as shift:
                assert await shift.ended() == 1, await shift.said()
            (end,) = shift.of("rolled_back")
            assert "of the baseline's" in end["why"]
            assert (await mesh.status())["weights"] == "v1 100, v2 0"
        assert set(statuses) == {grpc.StatusCode.OK, grpc.StatusCode.INTERNAL}


@contextlib.asynccontextmanager
async def grpc_server(failing: float) -> AsyncIterator[int]:
    """Run a server of which a part of the answers is INTERNAL; yields its port."""
    chooser = random.Random(1)

    async def handle(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if chooser.random() < failing:
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        return b""

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    at = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield int(at)
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def calling(front: Envoy) -> AsyncIterator[collections.Counter[grpc.StatusCode]]:
    """Call without an end; yields how often each status was got."""
    seen: collections.Counter[grpc.StatusCode] = collections.Counter()
    at, options = f"127.0.0.1:{front.proxy.egress_port}", [("grpc.default_authority", "cart.local")]

    async def calls(channel: grpc.aio.Channel) -> None:
        while True:
            call = channel.unary_unary("/shop.Cart/Get")(b"", timeout=10)
            seen[await call.code()] += 1

    async with grpc.aio.insecure_channel(at, options) as channel, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(calls(channel)) for _ in range(4)]
        yield seen
        for each in running:
            each.cancel()
