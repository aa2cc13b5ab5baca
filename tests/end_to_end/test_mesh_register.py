"""`headworks mesh register` keeps an instance in Cloud Map, through checks that fail, losses and outages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import mesh_documents as of
from tests.support.cloud_map import NAMESPACE, REGION, CloudMap, cloud_map, unsteady
from tests.support.mesh_client import loaded, session
from tests.support.upstream_servers import servers
from tests.support.xds_rig import control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
HEADWORKS = Path(sys.executable).with_name("headworks")
SERVICE = "cart"
OFTEN = ("--check-interval-s", "0.1", "--confirm-s", "0.2", "--drain-s", "0.5")


class Registering:
    """`headworks mesh register` of an instance `i-1`."""

    def __init__(self, folder: Path, url: str, port: int, *more: str) -> None:
        self.log = folder / "register.log"
        words = ["--namespace", NAMESPACE, "--service", SERVICE, "--instance-id", "i-1"]
        words += ["--ip", "127.0.0.1", "--port", str(port), *more]
        words += ["--cloud-map-region", REGION, "--cloud-map-endpoint", url]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(HEADWORKS), "mesh", "register", *words], stdout=log, stderr=log, env=os.environ
            )

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def registering(folder: Path, url: str, port: int, *more: str) -> Iterator[Registering]:
    made = Registering(folder, url, port, *OFTEN, *more)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(10)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[CloudMap]:
    with cloud_map(tmp_path) as made:
        made.service(SERVICE)
        yield made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.05)


def health(at: CloudMap) -> str:
    return at.instances(SERVICE).get("i-1", "")


async def test_an_instance_is_there_while_it_is_well_and_gone_first_at_the_end(
    tmp_path: Path, at: CloudMap
) -> None:
    async with servers(1) as (one,):
        one.healthy = False
        check = f"http://{one.address}/healthz"
        words = ("--check", check, "--attribute", "AVAILABILITY_ZONE=eu-west-1a")
        with registering(tmp_path, at.url, one.port, *words) as registered:
            await until(lambda: one.checks > 2)
            assert health(at) == ""
            one.healthy = True
            await until(lambda: health(at) == "HEALTHY")
            found = at.client.discover_instances(NamespaceName=NAMESPACE, ServiceName=SERVICE)["Instances"]
            assert found[0]["Attributes"] == {
                "AWS_INSTANCE_IPV4": "127.0.0.1",
                "AWS_INSTANCE_PORT": str(one.port),
                "AVAILABILITY_ZONE": "eu-west-1a",
            }
            one.healthy = False
            await until(lambda: health(at) == "UNHEALTHY")
            one.healthy = True
            await until(lambda: health(at) == "HEALTHY")
            await asyncio.to_thread(at.health, SERVICE, "i-1", "UNHEALTHY")  # by somebody else
            await until(lambda: health(at) == "HEALTHY")
            await asyncio.to_thread(at.deregister, SERVICE, "i-1")  # likewise
            await until(lambda: health(at) == "HEALTHY")
            assert "mesh_registration_lost" in registered.log.read_text()
            registered.process.send_signal(signal.SIGTERM)
            await until(lambda: health(at) == "")
            assert await asyncio.to_thread(registered.process.wait, 30) == 0


async def test_instances_are_replaced_without_a_failed_request(tmp_path: Path, at: CloudMap) -> None:
    found = {"awsCloudMap": {"namespaceName": NAMESPACE, "serviceName": SERVICE}}
    served = of.written(
        tmp_path / "mesh",
        of.mesh(),
        of.node("front", 8080, backends=("cart.local",)),
        of.service("cart.local", node="cart"),
        of.node("cart", 9080, more={"serviceDiscovery": found}),
    )
    asks = ("--cloud-map-region", REGION, "--cloud-map-endpoint", at.url, "--cloud-map-poll-s", "0.2")
    drains = ("--drain-s", "6")
    async with servers(2) as (old, new), session() as asking:
        with registering(
            tmp_path, at.url, old.port, "--check", f"tcp://{old.address}", *drains
        ) as registered:
            await until(lambda: health(at) == "HEALTHY")
            async with (
                control_plane(tmp_path, served, *asks) as plane,
                proxied(tmp_path, plane, "mesh/shop/virtualNode/front") as envoy,
                loaded(asking, envoy.egress) as load,
            ):
                await load.until("a")
                later = ("--check", f"http://{new.address}/healthz", "--instance-id", "i-2", *drains)
                with registering(tmp_path, at.url, new.port, *later):
                    await load.until("b")
                    assert await asyncio.to_thread(registered.end) == 0
                    await old.kill()
                    await load.more(200)
                    assert load.failed() == {}


async def test_throttling_and_outages_are_waited_for(tmp_path: Path, at: CloudMap) -> None:
    async with unsteady(at) as (before, cloud), servers(1) as (one,):
        cloud.throttling = True
        url = f"http://{before.address}"
        with registering(tmp_path, url, one.port, "--check", f"tcp://{one.address}") as registered:
            await until(lambda: cloud.refused >= 2)
            cloud.throttling = False
            await until(lambda: health(at) == "HEALTHY")
            await before.kill()
            await until(lambda: registered.log.read_text().count("mesh_registration_failed") == 2)
            await before.start()
            await until(lambda: "mesh_registration_recovered" in registered.log.read_text())
            assert await asyncio.to_thread(registered.end) == 0
            assert health(at) == ""


async def test_what_cannot_be_deregistered_is_said(tmp_path: Path, at: CloudMap) -> None:
    with registering(tmp_path, at.url, 8080) as registered:
        await until(lambda: health(at) == "HEALTHY")
        at.kill()
        assert await asyncio.to_thread(registered.end) == 1
        assert "is still registered" in registered.log.read_text()


async def test_a_service_that_is_not_there_is_named(tmp_path: Path, at: CloudMap) -> None:
    with registering(tmp_path, at.url, 8080, "--service", "basket") as registered:
        assert await asyncio.to_thread(registered.process.wait, 30) == 1
        assert registered.log.read_text() == "headworks: Cloud Map has no service basket in us-east-1\n"
