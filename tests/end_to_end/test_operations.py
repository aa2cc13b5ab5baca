"""What operators do: replay dead letters, use tokens, shed what is too much, look with the commands."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import aiomqtt
import jwt
import paho.mqtt.client as paho
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from paho.mqtt.enums import CallbackAPIVersion

from tests.end_to_end.test_clients import found, new_stream, telemetry
from tests.end_to_end.test_refusals import post, run
from tests.support.gateway import Gateway, gateway

pytestmark = pytest.mark.end_to_end

SMALL_IMAGES = '[[streams]]\nname = "image"\nkind = "raw"\npayload_bytes_max = 10\n'


async def test_a_dead_letter_is_replayed_under_its_own_device(tmp_path: Path) -> None:
    with gateway(tmp_path, extra=SMALL_IMAGES) as node:
        url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/camera/telemetry/image"
        headers = {"Content-Type": "application/octet-stream"}
        assert (await post(url, data=b"x" * 20, headers=headers))[0] == 413
        await asyncio.to_thread(node.stop)
        node.config.write_text(node.config.read_text().replace("bytes_max = 10", "bytes_max = 100"))
        await asyncio.to_thread(node.start)
        [letter] = json.loads(await asyncio.to_thread(run, node, "deadletters", "list", "--json"))
        assert (letter["reason"], letter["accepted"]) == ("too_large", False)
        await asyncio.to_thread(run, node, "deadletters", "replay", letter["name"])
        assert found(node, "image", 1) == [("acme", "camera", "eHh4eHh4eHh4eHh4eHh4eHh4eHg=")]
        assert json.loads(await asyncio.to_thread(run, node, "deadletters", "list", "--json")) == []
        assert await asyncio.to_thread(node.stop) == 0


async def test_a_token_is_a_password_in_mqtt_and_a_bearer_in_http(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": "k", "alg": "ES256"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
    node = Gateway(tmp_path, extra=f'[jwt]\njwks_file = "{tmp_path / "jwks.json"}"\n')
    node.config.write_text(node.config.read_text().replace('auth = ["topic"', 'auth = ["jwt"'))
    node.start()
    try:
        claims = {"tenant": "acme", "device": "token-1", "exp": time.time() + 60}  # noqa: TID251  # a real token
        token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k"})
        stream = new_stream()
        async with aiomqtt.Client("127.0.0.1", node.mqtt, username="x", password=token) as client:
            await client.publish(f"dt/acme/token-1/{stream}", json.dumps(telemetry()), qos=1)
        url = f"http://127.0.0.1:{node.http}/v1/telemetry/{stream}"
        good, bad = ({"Authorization": f"Bearer {each}"} for each in (token, token[:-4] + "AAAA"))
        assert (await post(url, json=telemetry(), headers=good))[0] == 202
        status, headers = await post(url, json=telemetry(), headers=bad)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await post(url, json=telemetry()))[0] == 401
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", node.mqtt, username="x", password="wrong"):
                pass
        assert [row[1] for row in found(node, stream, 2)] == ["token-1", "token-1"]
        assert token not in node.log.read_text()
    finally:
        assert await asyncio.to_thread(node.stop) == 0


def test_certificates_are_looked_at_as_often_as_is_set(tmp_path: Path) -> None:
    node = Gateway(tmp_path)
    node.config.write_text(node.config.read_text().replace("[tls]", "[tls]\nreload_poll_s = 60"))
    node.start()
    try:
        reloads = 'headworks_tls_reloads_total{result="ok"}'
        node.ca.server(["localhost"])
        time.sleep(1.5)
        assert node.metric(reloads) == 0
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        node.wait_until(lambda: node.metric(reloads) == 1, 5)
    finally:
        node.stop()


async def test_a_plan_that_sheds_drops_qos_0_and_counts_it(tmp_path: Path) -> None:
    plan = '[limits.default]\ndevice_messages_per_s = 10\nburst_s = 1\nover_limit = "shed"\n'
    with gateway(tmp_path, extra=plan) as node:
        stream = new_stream()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="shed")
        client.connect("127.0.0.1", node.mqtt)
        client.loop_start()
        for seq in range(100):
            client.publish(f"dt/acme/shed/{stream}", json.dumps(telemetry(seq=seq)), qos=0)
        client.publish(f"dt/acme/shed/{stream}", json.dumps(telemetry(seq=100)), qos=1).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()
        shed = int(node.metric('headworks_messages_refused_total{reason="shed"}'))
        assert 50 < shed < 100
        rows = found(node, stream, 101 - shed)
        assert json.loads(rows[-1][2])["seq"] == 100, "QoS 1 is never shed"


async def test_the_commands_say_what_is_there(node: Gateway) -> None:
    stream = new_stream()
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/cli/telemetry/{stream}"
    async with aiohttp.ClientSession() as client, client.post(url, json=telemetry()) as response:
        assert response.status == 202
    found(node, stream, 1)
    [record] = (await asyncio.to_thread(run, node, "query", "--stream", stream)).splitlines()
    assert json.loads(record)["payload"] == telemetry()
    workers = json.loads(await asyncio.to_thread(run, node, "spool", "status", "--json"))
    assert [each["worker"] for each in workers] == ["worker-0", "worker-1"]
    await asyncio.to_thread(run, node, "tenants", "add", "listed")
    await asyncio.to_thread(run, node, "devices", "add", "listed", "a", "b")
    devices = json.loads(await asyncio.to_thread(run, node, "devices", "list", "listed", "--json"))
    assert [each["name"] for each in devices] == ["a", "b"]
    files = [path for path in node.data_dir.rglob("*") if path.is_file()]
    assert {"local.db", "registry.db", "spool.db", "spool.db-wal", "node.lock"} <= {
        path.name for path in files
    }
    assert [path for path in files if path.stat().st_mode & 0o077] == [], "for the node's own user only"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["devices", "add", "nobody", "x"], 1),
        (["deadletters", "show", "worker-9/1"], 1),
        (["deadletters", "purge"], 2),
        (["keys", "revoke", "none"], 1),
        (["query", "--limit", "0"], 2),
    ],
)
def test_a_command_that_cannot_says_why_in_one_line(node: Gateway, arguments: list[str], code: int) -> None:
    command = [sys.executable, "-m", "commands.cli", *arguments, "--data-dir", str(node.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr
