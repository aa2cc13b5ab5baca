"""What the control plane does with peers that ask for too much, for nothing, or with other certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from typer.testing import CliRunner

from commands.mesh import app
from routing.xds.server import NAMES_MAX, REQUEST_BYTES_MAX
from routing.xds.snapshot import CLUSTERS, ENDPOINTS
from tests.support import mesh_documents as of
from tests.support import xds_peer
from tests.support.mesh_client import cart
from tests.support.xds_peer import Files, ends_with
from tests.support.xds_rig import ControlPlane, bootstrapped, control_plane

pytestmark = [pytest.mark.end_to_end]
FRONT = "mesh/shop/virtualNode/front"
BIG = [("grpc.max_send_message_length", 64 << 20)]


def served(folder: Path) -> Path:
    return of.written(folder / "mesh", *cart({"v1": 9001}, of.route("cart", "all", {"v1": 1})))


def node(folder: Path) -> dict[str, Any]:
    envoy = bootstrapped(folder, FRONT, "127.0.0.1:1")
    found: dict[str, Any] = json.loads(envoy.config.read_text())["node"]
    return found


@contextlib.asynccontextmanager
async def stream(plane: ControlPlane) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}", options=BIG) as channel:
        yield ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(timeout=60)


async def ended(call: Any, *requests: DeltaDiscoveryRequest) -> tuple[grpc.StatusCode, str]:
    """Send requests, and return how the stream ends."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for request in requests:
            await call.write(request)
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code(), await call.details()


async def test_no_more_proxies_are_served_than_were_allowed(tmp_path: Path) -> None:
    of_front = node(tmp_path)
    async with (
        control_plane(tmp_path, served(tmp_path), "--streams-max", "1") as plane,
        stream(plane) as first,
    ):
        await first.write(DeltaDiscoveryRequest(type_url=CLUSTERS, node=of_front))
        assert (await first.read()).type_url == CLUSTERS
        async with stream(plane) as second:
            code, why = await ended(second, DeltaDiscoveryRequest(type_url=CLUSTERS, node=of_front))
        assert (code, why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more than 1 streams are served")


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([f"n{number}" for number in range(NAMES_MAX + 1)], grpc.StatusCode.RESOURCE_EXHAUSTED),
        (["n" * REQUEST_BYTES_MAX], grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["too many names", "too many bytes"],
)
async def test_a_request_has_its_limits(tmp_path: Path, names: list[str], code: grpc.StatusCode) -> None:
    of_front = node(tmp_path)
    async with control_plane(tmp_path, served(tmp_path)) as plane, stream(plane) as call:
        asked = DeltaDiscoveryRequest(type_url=ENDPOINTS, node=of_front, resource_names_subscribe=names)
        assert (await ended(call, asked))[0] is code
        await plane.until(lambda rows: not rows)


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (
            {"id": "mesh/shop/virtualNode/gone"},
            grpc.StatusCode.NOT_FOUND,
            "there is no mesh/shop/virtualNode/gone",
        ),
        ({"id": ""}, grpc.StatusCode.NOT_FOUND, "there is no "),
        ({"metadata": {}}, grpc.StatusCode.INVALID_ARGUMENT, ""),
    ],
    ids=["another node", "no node", "no metadata"],
)
async def test_who_is_no_proxy_of_the_mesh_hears_why(
    tmp_path: Path, change: dict[str, Any], code: grpc.StatusCode, why: str
) -> None:
    asking = node(tmp_path) | change
    async with control_plane(tmp_path, served(tmp_path)) as plane, stream(plane) as call:
        heard, details = await ended(call, DeltaDiscoveryRequest(type_url=CLUSTERS, node=asking))
        assert heard is code
        assert details.startswith(why)


async def test_a_common_name_names_a_node_where_there_is_no_spiffe_id(tmp_path: Path) -> None:
    files = Files(tmp_path)
    of_front = node(tmp_path)
    async with control_plane(tmp_path, served(tmp_path), *files.server()) as plane:
        denied = await ends_with(plane.port, files.named("mesh/shop/virtualNode/v1"), of_front)
        assert denied is grpc.StatusCode.PERMISSION_DENIED
        async with xds_peer.stream(plane.port, files.named(FRONT)) as call:
            await call.write(DeltaDiscoveryRequest(type_url=CLUSTERS, node=of_front))
            assert (await call.read()).type_url == CLUSTERS


async def test_its_own_certificate_is_read_again_when_it_changes(tmp_path: Path) -> None:
    files = Files(tmp_path)
    of_front = node(tmp_path)
    words = [*files.server(), "--trust-domain", "shop.example"]
    async with control_plane(tmp_path, served(tmp_path), *words) as plane:
        denied = grpc.StatusCode.PERMISSION_DENIED
        assert await ends_with(plane.port, files.client("spiffe://shop.example/else"), of_front) is denied
        later = Files(tmp_path)  # another authority, in the same files
        assert await ends_with(plane.port, later.client("spiffe://shop.example/else"), of_front) is denied
        assert later.authority.cert_pem.bytes() != files.authority.cert_pem.bytes()


async def test_the_status_is_a_table(tmp_path: Path) -> None:
    of_front = node(tmp_path)
    async with control_plane(tmp_path, served(tmp_path)) as plane, stream(plane) as call:
        await call.write(DeltaDiscoveryRequest(type_url=CLUSTERS, node=of_front))
        assert (await call.read()).type_url == CLUSTERS
        words = ["status", "--status-socket", str(plane.socket)]
        said = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "160"})
        assert said.exit_code == 0
        row = next(line for line in said.stdout.splitlines() if FRONT in line)
        assert "Cluster" in row
        assert "REQUESTED" in row
    gone = await asyncio.to_thread(
        CliRunner().invoke, app, ["status", "--status-socket", str(tmp_path / "none")]
    )
    assert gone.exit_code == 1
    assert "no control plane answers on" in gone.output
