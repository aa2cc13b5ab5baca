"""The clients that people use, against the gateway as it is shipped; each message found once in the sink."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import shutil
import sqlite3
import ssl
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ingest.pki import Issued
from tests.support.gateway import Gateway

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).parents[2]


def telemetry(**extra: Any) -> dict[str, Any]:
    return {"ts": 1764000000000, "metrics": {"v": 1.5}, **extra}


def found(node: Gateway, stream: str, count: int, deadline_s: float = 5.0) -> list[tuple[str, str, str]]:
    """Return (tenant, device, payload) of a stream, once there are `count` of them."""
    until = time.monotonic() + deadline_s
    rows: list[tuple[str, str, str]] = []
    while time.monotonic() < until:
        with contextlib.suppress(sqlite3.OperationalError):  # nothing was delivered yet, so no file or table
            uri = f"file:{node.data_dir / 'local.db'}?mode=ro"  # so that the node makes the file, not we
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                rows = connection.execute(
                    "SELECT tenant, device, payload FROM telemetry WHERE stream = ? ORDER BY rowid", (stream,)
                ).fetchall()
        if len(rows) >= count:
            break
        time.sleep(0.05)
    assert len(rows) == count, rows
    return rows


def client_tls(node: Gateway, issued: Issued) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(node.ca.ca_path))
    context.load_cert_chain(issued.certificate, issued.key)
    return context


def new_stream() -> str:
    return f"s{uuid.uuid4().hex[:10]}"


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_mosquitto_pub(node: Gateway, version: str, qos: int) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("mosquitto-clients is not installed")
    stream = new_stream()
    command = [program, "-p", str(node.mqtt), "-V", version, "-q", str(qos), "-i", stream]
    command += ["-t", f"dt/acme/one/{stream}", "-m", json.dumps(telemetry())]
    subprocess.run(command, check=True, timeout=10)
    assert found(node, stream, 1)[0][:2] == ("acme", "one")


def test_mosquitto_pub_with_a_device_certificate(node: Gateway) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("mosquitto-clients is not installed")
    issued, stream = node.ca.device("acme", "tls-1"), new_stream()
    command = [program, "-p", str(node.mqtts), "-q", "1", "--cafile", str(node.ca.ca_path)]
    command += ["--cert", str(issued.certificate), "--key", str(issued.key), "-i", stream]
    command += ["-t", f"dt/acme/tls-1/{stream}", "-m", json.dumps(telemetry())]
    subprocess.run(command, check=True, timeout=10)
    found(node, stream, 1)


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
def test_paho_at_every_quality_of_service(node: Gateway, version: MQTTProtocolVersion) -> None:
    stream = new_stream()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=stream, protocol=version)
    client.connect("127.0.0.1", node.mqtt)
    client.loop_start()
    try:
        for qos in (0, 1, 2):
            info = client.publish(f"dt/acme/paho/{stream}", json.dumps(telemetry(seq=qos)), qos=qos)
            info.wait_for_publish(5)
            assert info.is_published()
    finally:
        client.disconnect()
        client.loop_stop()
    assert [json.loads(row[2])["seq"] for row in found(node, stream, 3)] == [0, 1, 2]


def test_paho_5_hears_why_a_publish_is_refused(node: Gateway) -> None:
    reasons: list[Any] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=new_stream(), protocol=MQTTProtocolVersion.MQTTv5
    )
    client.on_publish = lambda _c, _u, _mid, reason, _p: reasons.append(reason.value)
    client.connect("127.0.0.1", node.mqtt)
    client.loop_start()
    try:
        for topic, payload in (("other/topic", "x"), ("dt/acme/paho/s", "not telemetry")):
            client.publish(topic, payload, qos=1).wait_for_publish(5)
    finally:
        client.disconnect()
        client.loop_stop()
    assert reasons == [0x90, 0x99]


def test_a_topic_alias_stands_for_its_topic(node: Gateway) -> None:
    stream = new_stream()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=stream, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", node.mqtt)
    client.loop_start()
    try:
        for topic in (f"dt/acme/alias/{stream}", ""):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
            properties.TopicAlias = 3
            client.publish(topic, json.dumps(telemetry()), qos=1, properties=properties).wait_for_publish(5)
    finally:
        client.disconnect()
        client.loop_stop()
    found(node, stream, 2)


def test_the_will_of_a_client_that_vanishes_is_published(node: Gateway) -> None:
    stream = new_stream()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=stream)
    client.will_set(f"dt/acme/will/{stream}", json.dumps(telemetry()), qos=1)
    client.connect("127.0.0.1", node.mqtt)
    client.loop_start()
    client.publish(f"dt/acme/will/{stream}", json.dumps(telemetry()), qos=1).wait_for_publish(5)
    client.loop_stop()
    socket = client.socket()
    assert socket is not None
    socket.close()
    found(node, stream, 2)


def test_a_client_that_says_goodbye_leaves_no_will(node: Gateway) -> None:
    stream = new_stream()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=stream)
    client.will_set(f"dt/acme/will/{stream}", json.dumps(telemetry()), qos=1)
    client.connect("127.0.0.1", node.mqtt)
    client.loop_start()
    client.publish(f"dt/acme/will/{stream}", json.dumps(telemetry()), qos=1).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()
    time.sleep(0.3)
    found(node, stream, 1)


def test_a_second_connection_takes_the_session_over(node: Gateway) -> None:
    """On either worker: with two, some of these meet on different ones."""
    for _ in range(6):
        name = new_stream()
        closed: list[int] = []
        first = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
        first.on_disconnect = lambda _c, _u, _f, reason, _p, closed=closed: closed.append(reason.value)
        first.connect("127.0.0.1", node.mqtt)
        first.loop_start()
        first.publish(f"dt/acme/two/{name}", json.dumps(telemetry()), qos=1).wait_for_publish(5)
        second = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5)
        second.connect("127.0.0.1", node.mqtt)
        second.loop_start()
        second.publish(f"dt/acme/two/{name}", json.dumps(telemetry()), qos=1).wait_for_publish(5)
        until = time.monotonic() + 3
        while not closed and time.monotonic() < until:
            time.sleep(0.02)
        first.loop_stop()
        second.disconnect()
        second.loop_stop()
        assert closed[:1] == [0x8E]


async def test_aiomqtt_over_mutual_tls(node: Gateway) -> None:
    issued, stream = node.ca.device("acme", "aio"), new_stream()
    context = client_tls(node, issued)
    async with aiomqtt.Client("127.0.0.1", node.mqtts, tls_context=context, identifier=stream) as client:
        for seq in range(20):
            await client.publish(f"dt/acme/aio/{stream}", json.dumps(telemetry(seq=seq)), qos=1)
    assert len(found(node, stream, 20)) == 20


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_mqtt_js(node: Gateway, scheme: str) -> None:
    program = shutil.which("node")
    if program is None or not (ROOT / "node_modules/mqtt").exists():
        pytest.skip("npm packages are not installed")
    stream = new_stream()
    url = f"mqtt://127.0.0.1:{node.mqtt}" if scheme == "mqtt" else f"ws://127.0.0.1:{node.http}/mqtt"
    script = f"""
    const client = require('mqtt').connect('{url}', {{protocolVersion: 5, reconnectPeriod: 0}});
    client.on('error', error => {{ console.error(error); process.exit(1); }});
    client.on('connect', async () => {{
      for (const qos of [0, 1, 2])
        await client.publishAsync('dt/acme/js/{stream}', '{json.dumps(telemetry())}', {{qos}});
      await client.endAsync();
      process.exit(0);
    }});
    """
    subprocess.run([program, "-e", script], check=True, timeout=20, cwd=ROOT)
    found(node, stream, 3)


async def test_http_takes_one_a_list_and_lines(node: Gateway) -> None:
    stream = new_stream()
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/web/telemetry/{stream}"
    lines = b"\n".join(json.dumps(telemetry(seq=n)).encode() for n in (3, 4))
    async with aiohttp.ClientSession() as client:
        for body, kind, count in (
            (json.dumps(telemetry(seq=0)).encode(), "application/json", 1),
            (json.dumps([telemetry(seq=1), telemetry(seq=2)]).encode(), "application/json", 2),
            (lines, "application/x-ndjson", 2),
            (msgspec.msgpack.encode(telemetry(seq=5)), "application/msgpack", 1),
        ):
            async with client.post(url, data=body, headers={"Content-Type": kind}) as response:
                answer = await response.json()
                assert response.status == 202, answer
                assert answer["accepted"] == count == len(set(answer["ids"]))
        packed = gzip.compress(json.dumps(telemetry(seq=6)).encode())
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        async with client.post(url, data=packed, headers=headers) as response:
            assert response.status == 202
    assert [json.loads(row[2])["seq"] for row in found(node, stream, 7)] == list(range(7))


async def test_http_with_a_device_certificate_names_no_device(node: Gateway) -> None:
    issued, stream = node.ca.device("acme", "tls-http"), new_stream()
    url = f"https://localhost:{node.https}/v1/telemetry/{stream}"
    async with aiohttp.ClientSession() as client:
        async with client.post(url, json=telemetry(), ssl=client_tls(node, issued)) as response:
            assert response.status == 202, await response.text()
        foreign = f"https://localhost:{node.https}/v1/tenants/other/devices/x/telemetry/{stream}"
        async with client.post(foreign, json=telemetry(), ssl=client_tls(node, issued)) as response:
            assert response.status == 403
            assert response.content_type == "application/problem+json"
    assert found(node, stream, 1)[0][:2] == ("acme", "tls-http")


async def test_the_same_idempotency_key_is_one_message_on_any_worker(node: Gateway) -> None:
    stream = new_stream()
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/once/telemetry/{stream}"
    answers = []
    for _ in range(6):  # a connection each, so that both workers see it
        async with (
            aiohttp.ClientSession() as client,
            client.post(url, json=telemetry(), headers={"Idempotency-Key": stream}) as response,
        ):
            assert response.status == 202
            answers.append(await response.text())
    assert len(set(answers)) == 1
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, json=telemetry(seq=9), headers={"Idempotency-Key": stream}) as response,
    ):
        assert response.status == 422
    found(node, stream, 1)


async def test_websocket_frames_are_acknowledged_by_their_ids(node: Gateway) -> None:
    issued, stream = node.ca.device("acme", "ws"), new_stream()
    acknowledged: list[Any] = []
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(
            f"wss://localhost:{node.https}/v1/stream",
            ssl=client_tls(node, issued),
            protocols=("headworks.v1.json",),
        ) as socket,
    ):
        frames = [{"id": n, "stream": stream, "data": telemetry(seq=n)} for n in range(10)]
        await socket.send_json(frames)
        await socket.send_json({"id": "bad", "stream": stream, "data": {"ts": 0}})
        refused: list[Any] = []
        async with asyncio.timeout(5):
            while len(acknowledged) < 10 or not refused:
                answer = await socket.receive_json()
                acknowledged += answer.get("ack", [])
                refused += answer.get("refused", [])
    assert acknowledged == list(range(10))
    assert refused[0]["id"] == "bad"
    assert refused[0]["reason"] == "malformed"
    found(node, stream, 10)


async def test_a_raw_stream_takes_any_bytes_up_to_its_size(node: Gateway) -> None:
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/camera/telemetry/image/{new_stream()}"
    headers = {"Content-Type": "application/octet-stream"}
    async with aiohttp.ClientSession() as client:
        async with client.post(url, data=b"\x00\xff" * 400, headers=headers) as response:
            assert response.status == 202
        async with client.post(url, data=b"x" * 1001, headers=headers) as response:
            assert response.status == 413
