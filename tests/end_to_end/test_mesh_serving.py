"""What the App Mesh API keeps reaches Envoys: changed with boto3, while requests go through."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support import mesh_documents as of
from tests.support.dynamodb import dynamodb_server, made_table
from tests.support.mesh_api import SECRET, MeshApiProcess, mesh_api
from tests.support.mesh_client import cart, loaded, session
from tests.support.mesh_rig import Envoy, port, running
from tests.support.upstream_servers import servers
from tests.support.xds_rig import acknowledged, bootstrapped, until

pytestmark = [pytest.mark.end_to_end]
FRONT = "mesh/shop/virtualNode/front"
ORDER = ["mesh", "virtual_node", "virtual_router", "route", "virtual_service"]


class Served:
    """The API with its control plane."""

    def __init__(self, folder: Path, api: MeshApiProcess, at: int, socket: Path) -> None:
        self._folder = folder
        self.api = api
        self.at = at
        self.socket = socket
        self.client = api.client()

    async def call(self, operation: str, **members: Any) -> Any:
        return await asyncio.to_thread(getattr(self.client, operation), **members)

    async def create(self, *documents: of.Document) -> None:
        kinds = {"policyName": "policy", "routeName": "route", "virtualNodeName": "virtual_node"}
        kinds |= {"virtualRouterName": "virtual_router", "virtualServiceName": "virtual_service"}
        named = [(next((kinds[key] for key in kinds if key in each), "mesh"), each) for each in documents]
        for kind, each in sorted(named, key=lambda pair: ORDER.index(pair[0])):
            await self.call(f"create_{kind}", **each)

    async def weights(self, weights: dict[str, int]) -> None:
        route = of.route("cart", "all", weights)
        await self.call("update_route", **route)

    @contextlib.asynccontextmanager
    async def front(self) -> AsyncIterator[Envoy]:
        envoy = bootstrapped(self._folder, FRONT, f"127.0.0.1:{self.at}")
        with running(envoy) as process:
            await envoy.ready(process)
            yield envoy


@contextlib.contextmanager
def serving(folder: Path, *settings: str, store: tuple[str, ...] = ()) -> Any:
    at, socket = port(), folder / "status.sock"
    xds = ["[xds]", f'bind = "127.0.0.1:{at}"', f'status_socket = "{socket}"', *settings]
    with mesh_api(folder, *store, *xds) as api:
        yield Served(folder, api, at, socket)


async def said(served: Served, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in served.api.log.read_text():
            await asyncio.sleep(0.05)


async def test_a_change_by_boto3_reaches_an_envoy_without_a_failed_request(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        with serving(tmp_path) as served:
            await served.create(*cart({"v1": one.port, "v2": two.port}, of.route("cart", "all", {"v1": 1})))
            async with served.front() as envoy, loaded(asking, envoy.egress) as load:
                await load.until("a")
                await served.weights({"v2": 1})
                await load.until("b")
                served.api.end(signal.SIGKILL)
                await load.more(100)
                await asyncio.to_thread(served.api.start)
                await until(served.socket, acknowledged)
                await served.weights({"v1": 1})
                await load.until("a")
                assert load.failed() == {}
            assert served.api.end() == 0


async def test_a_backend_may_come_before_its_service(tmp_path: Path) -> None:
    async with servers(1) as (one,), session() as asking:
        with serving(tmp_path) as served:
            documents = cart({"v1": one.port}, of.route("cart", "all", {"v1": 1}))
            later = [each for each in documents if "virtualServiceName" in each]
            await served.create(*[each for each in documents if each not in later])
            async with served.front() as envoy, loaded(asking, envoy.egress) as load:
                await load.more(20)
                assert set(load.seen) == {(404, "")}
                await served.create(*later)
                await load.until("a")


async def test_a_mesh_that_is_not_consistent_is_served_as_it_was(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        with serving(tmp_path) as served:
            await served.create(*cart({"v1": one.port, "v2": two.port}, of.route("cart", "all", {"v1": 1})))
            async with served.front() as envoy, loaded(asking, envoy.egress) as load:
                await load.until("a")
                none = {"listeners": [], "serviceDiscovery": {"dns": {"hostname": "127.0.0.1"}}}
                await served.call("update_virtual_node", meshName="shop", virtualNodeName="v2", spec=none)
                await served.weights({"v2": 1})
                await said(served, "has no listener: it cannot be called")
                await load.more(50)
                assert load.last == "a"
                await served.call("update_virtual_node", **of.node("v2", two.port))
                await load.until("b")
                assert load.failed() == {}


async def test_a_policy_is_kept_beside_app_mesh_s_own(tmp_path: Path) -> None:
    async with servers(1) as (one,), session() as asking:
        with serving(tmp_path) as served:
            await served.create(*cart({"v1": one.port}, of.route("cart", "all", {"v1": 1})))
            url = f"{served.api.url}/v20190125/meshes/shop/policies"
            spec = {"target": "virtualNode/v1", "retryBudget": {"percent": 50.0}}

            async def call(method: str, url: str, body: bytes = b"") -> tuple[int, Any]:
                request = AWSRequest(method=method, url=url, data=body)
                SigV4Auth(Credentials("AKADMIN", SECRET), "appmesh", "us-east-1").add_auth(request)
                headers = dict(request.headers)
                async with asking.request(method, url, data=body, headers=headers) as answer:
                    return answer.status, await answer.json(content_type=None)

            gone = spec | {"target": "virtualNode/gone"}
            assert (await call("PUT", url, msgspec.json.encode({"policyName": "few", "spec": gone})))[
                0
            ] == 404
            status, made = await call("PUT", url, msgspec.json.encode({"policyName": "few", "spec": spec}))
            assert (status, made["spec"], made["policyName"]) == (200, spec, "few")
            assert (await call("GET", f"{url}/few"))[1]["spec"] == spec
            assert [each["policyName"] for each in (await call("GET", url))[1]["policies"]] == ["few"]
            async with (
                served.front() as envoy,
                asking.get(f"http://127.0.0.1:{envoy.proxy.admin_port}/config_dump") as answer,
            ):
                assert "retry_budget" in await answer.text()
            assert (await call("DELETE", f"{url}/few"))[0] == 200


async def test_endpoints_of_a_file_are_followed(tmp_path: Path) -> None:
    async with servers(2) as (one, two), session() as asking:
        file = tmp_path / "endpoints.json"
        file.write_text(f'{{"mesh/shop/virtualNode/v1": ["127.0.0.1:{one.port}"]}}')
        with serving(tmp_path, f'endpoints_file = "{file}"') as served:
            await served.create(*cart({"v1": 1}, of.route("cart", "all", {"v1": 1})))
            async with served.front() as envoy, loaded(asking, envoy.egress) as load:
                await load.until("a")
                file.write_text("{")
                await said(served, "endpoints.json")
                await load.more(50)
                file.write_text(f'{{"v1": ["127.0.0.1:{two.port}"]}}')
                await load.until("b")
                assert load.failed() == {}


async def test_two_processes_share_a_table(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        await asyncio.to_thread(folder.mkdir)
    async with servers(2) as (one, two), session() as asking:
        with dynamodb_server() as url:
            store = ('store = "dynamodb"', f'table = "{made_table(url)}"', f'table_endpoint = "{url}"')
            with serving(folders[0], store=store) as first, serving(folders[1], store=store) as second:
                ports = {"v1": one.port, "v2": two.port}
                await first.create(*cart(ports, of.route("cart", "all", {"v1": 1})))
                await said(second, "mesh_served")
                async with second.front() as envoy, loaded(asking, envoy.egress) as load:
                    await load.until("a")
                    await first.weights({"v2": 1})
                    await load.until("b")
                    await second.weights({"v1": 1})
                    await load.until("a")
                    assert load.failed() == {}
