"""SIGTERM under load: everybody is told, everything accepted is delivered, and the exit code says so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.end_to_end.test_clients import telemetry
from tests.support import ledger
from tests.support.gateway import gateway
from tests.support.mqtt_load import Publisher

pytestmark = pytest.mark.end_to_end


async def test_a_drain_tells_the_clients_and_delivers_everything(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as node:
        reasons: list[int] = []
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="five", protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_disconnect = lambda _c, _u, _f, reason, _p: reasons.append(reason.value)
        client.connect("127.0.0.1", node.mqtt)
        client.loop_start()
        publishers = [Publisher(f"device-{number}", 8) for number in range(10)]
        over = asyncio.Event()
        key = await asyncio.create_subprocess_exec(
            "headworks", "keys", "add", "acme", "ws", "--data-dir", str(node.data_dir), stdout=-1
        )
        secret = (await key.communicate())[0].decode().strip()
        async with aiohttp.ClientSession() as http:
            socket = await http.ws_connect(
                f"http://127.0.0.1:{node.http}/v1/stream",
                headers={"X-API-Key": secret},
                protocols=("headworks.v1.json",),
            )
            await socket.send_json({"id": 1, "stream": "s", "data": telemetry(seq=1)})
            assert (await socket.receive_json()) == {"ack": [1]}
            tasks = [asyncio.ensure_future(publisher.run(node.mqtt, over)) for publisher in publishers]
            await asyncio.sleep(1.0)
            assert node.process is not None
            os.kill(node.process.pid, signal.SIGTERM)
            closing = await socket.receive(timeout=10)
            assert closing.type is aiohttp.WSMsgType.CLOSE
            assert closing.data == 1012
            assert await asyncio.to_thread(node.process.wait, 15) == 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client.loop_stop()
        assert reasons[:1] == [0x8B]
        acknowledged = set().union(*(publisher.acknowledged for publisher in publishers)) | {("ws", 1)}
        sent = set().union(*(publisher.sent() for publisher in publishers)) | {("ws", 1)}
        ledger.check(acknowledged, sent, ledger.arrived_locally(node.data_dir))
        assert len(acknowledged) > 100


async def test_a_full_disk_stops_acceptance_and_recovers_by_itself(tmp_path: Path) -> None:
    """A file system of 12 MiB: it fills, the node says so, and goes on when there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = await asyncio.create_subprocess_exec(
        "mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk), stderr=-3
    )
    if await mounted.wait():
        pytest.skip("needs root to mount a small file system")
    try:
        with gateway(tmp_path, sink='kind = "null"') as node:
            assert await asyncio.to_thread(node.stop) == 0
            node.config.write_text(node.config.read_text().replace(str(node.data_dir), str(disk / "data")))
            await asyncio.to_thread(node.start)
            filler = disk / "filler"
            publisher = Publisher("device-1", 4)
            over = asyncio.Event()
            running = asyncio.ensure_future(publisher.run(node.mqtt, over))
            await asyncio.sleep(0.3)
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            await asyncio.to_thread(node.wait_until, lambda: node.get("/readyz")[0] == 503, 15)
            assert "spool of worker 0 is broken" in json.loads(node.get("/readyz")[1])["reasons"][0]
            before = len(publisher.acknowledged)
            await asyncio.sleep(0.5)
            # The last free bytes may take a group or two more; those are on the disk all the same.
            assert len(publisher.acknowledged) <= before + 16
            filler.unlink()
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
    finally:
        unmounted = await asyncio.create_subprocess_exec("umount", "-l", str(disk))
        await unmounted.wait()


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
