"""A disk or a spool that is full: nothing is acknowledged that is not stored, and it recovers by itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.test_clients import telemetry
from tests.support import ledger
from tests.support.gateway import Gateway, gateway
from tests.support.mqtt_load import Publisher

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def move(node: Gateway, data_dir: Path) -> None:
    """Start the node again with its data elsewhere."""
    assert node.stop() == 0
    node.config.write_text(node.config.read_text().replace(str(node.data_dir), str(data_dir)))
    node.data_dir = data_dir
    node.start()


def fill(filler: Path) -> None:
    """Leave no byte free."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


async def test_a_full_disk_stops_acceptance_and_recovers_by_itself(tmp_path: Path, small_disk: Path) -> None:
    with gateway(tmp_path, sink='kind = "null"') as node:
        await asyncio.to_thread(move, node, small_disk / "data")
        publisher = Publisher("device-1", 4)
        over = asyncio.Event()
        running = asyncio.ensure_future(publisher.run(node.mqtt, over))
        await asyncio.sleep(0.3)
        fill(small_disk / "filler")
        await asyncio.to_thread(node.wait_until, lambda: node.get("/readyz")[0] == 503, 15)
        assert "spool of worker 0 is broken" in json.loads(node.get("/readyz")[1])["reasons"][0]
        before = len(publisher.acknowledged)
        await asyncio.sleep(0.5)
        # The last free bytes may take a group or two more; those are on the disk all the same.
        assert len(publisher.acknowledged) <= before + 16
        (small_disk / "filler").unlink()
        await asyncio.to_thread(node.wait_until, lambda: node.get("/readyz")[0] == 200, 15)
        await asyncio.sleep(0.3)
        assert len(publisher.acknowledged) > before
        over.set()
        async with asyncio.timeout(10):
            await running
        await asyncio.to_thread(node.wait_until, node.delivered)
        entry = node.status()["ledger"]["acme"]
        assert entry["accepted"] == entry["delivered"] >= len(publisher.acknowledged)
        assert await asyncio.to_thread(node.stop) == 0


async def test_what_http_refuses_while_the_disk_is_full_is_not_delivered_later(
    tmp_path: Path, small_disk: Path
) -> None:
    answers: dict[int, int] = {}
    with gateway(tmp_path, sink='kind = "local"') as node:
        await asyncio.to_thread(move, node, small_disk / "data")
        url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/d/telemetry/s"
        async with aiohttp.ClientSession() as http:

            async def post_until(status: int) -> None:
                async with asyncio.timeout(30):
                    while True:
                        seq = len(answers) + 1
                        async with http.post(url, json=telemetry(seq=seq)) as response:
                            answers[seq] = response.status
                            if response.status != 202:
                                problem = await response.json(content_type="application/problem+json")
                                assert problem["type"] == "urn:headworks:problem:disk-error"
                                assert "Retry-After" in response.headers
                        if answers[seq] == status:
                            return

            await post_until(202)
            await asyncio.to_thread(fill, small_disk / "filler")
            await post_until(503)
            await post_until(503)
            (small_disk / "filler").unlink()
            await post_until(202)
        await asyncio.to_thread(node.wait_until, node.delivered)
        arrived = [seq for _, _, seq in ledger.arrived_locally(node.data_dir)]
        assert arrived == [seq for seq, status in answers.items() if status == 202]
        entry = node.status()["ledger"]["acme"]
        assert entry["accepted"] == entry["delivered"] == len(arrived)
        assert await asyncio.to_thread(node.stop) == 0


@pytest.mark.parametrize("full", ["pause", "refuse"])
async def test_a_full_spool_pauses_or_refuses_and_loses_nothing(tmp_path: Path, full: str) -> None:
    """The sink is a Kinesis that is not there; a spool of 100 kB fills in no time."""
    sink = 'kind = "kinesis"\nstream = "s"\nregion = "eu-central-1"\nendpoint = "http://127.0.0.1:1"'
    extra = f'[spool]\nbytes_max = 100000\nfull = "{full}"\n'
    with gateway(tmp_path, sink='kind = "local"') as first:
        assert await asyncio.to_thread(first.stop) == 0
        text = first.config.read_text()
        first.config.write_text(text.replace('kind = "local"', sink) + extra)
        await asyncio.to_thread(first.start, wait=False)
        await asyncio.to_thread(first.wait_until, lambda: first.get("/healthz")[0] == 200)
        publisher = Publisher("device-1", 8)
        over = asyncio.Event()
        running = asyncio.ensure_future(publisher.run(first.mqtt, over))

        def is_full() -> bool:
            return b"is full" in first.get("/readyz")[1]

        await asyncio.to_thread(first.wait_until, is_full)
        url = f"http://127.0.0.1:{first.http}/v1/tenants/acme/devices/d/telemetry/s"
        async with aiohttp.ClientSession() as http, http.post(url, json=telemetry(seq=1)) as response:
            assert response.status == 503
            assert "Retry-After" in response.headers
        await asyncio.to_thread(first.kill_all)
        first.config.write_text(text)
        await asyncio.to_thread(first.start)
        over.set()
        async with asyncio.timeout(15):
            await running
        await asyncio.to_thread(first.wait_until, first.delivered)
        ledger.check(publisher.acknowledged, publisher.sent(), ledger.arrived_locally(first.data_dir))
        assert len(publisher.acknowledged) > 100
