"""SIGTERM under load: everybody is told, everything accepted is delivered, and the exit code says so."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
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
            sys.executable,
            "-m",
            "commands.cli",
            "keys",
            "add",
            "acme",
            "ws",
            "--data-dir",
            str(node.data_dir),
            stdout=-1,
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
