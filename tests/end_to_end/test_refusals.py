"""What is refused, by name: at the start, in the handshake, at CONNECT, at the topic."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from ingest.pki import DevelopmentCa
from tests.end_to_end.test_clients import client_tls, found, new_stream, telemetry
from tests.support.gateway import Gateway, free_port, gateway

pytestmark = pytest.mark.end_to_end

GOOD = """
[node]
data_dir = "{data_dir}"
[[listeners]]
protocol = "mqtt"
bind = "127.0.0.1:{port}"
tls = "off"
auth = ["topic"]
[admin]
bind = "127.0.0.1:{admin}"
"""


def serve(config: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "commands.cli", "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stderr


def written(folder: Path, text: str) -> Path:
    path = folder / "headworks.toml"
    path.write_text(text)
    return path


def good(folder: Path, port: int | None = None) -> str:
    return GOOD.format(data_dir=folder / "data", port=port or free_port(), admin=free_port())


def test_an_unknown_setting_is_named_with_its_line_and_its_neighbour(tmp_path: Path) -> None:
    code, text = serve(written(tmp_path, good(tmp_path) + "[spool]\nbytes_maximum = 3\n"))
    assert code == 2
    assert "headworks.toml:12: spool.bytes_maximum: unknown setting; did you mean bytes_max?" in text
    assert "Traceback" not in text


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, text = serve(written(tmp_path, good(tmp_path, taken.getsockname()[1])))
    assert code == 1
    assert "listeners[0].bind" in text
    assert "the port is in use" in text


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    code, text = serve(written(tmp_path, good(tmp_path)))
    assert code == 1
    assert "node.data_dir" in text


def test_plaintext_outside_the_loopback_is_refused(tmp_path: Path) -> None:
    config = written(tmp_path, good(tmp_path).replace("127.0.0.1:", "0.0.0.0:", 1))
    code, text = serve(config)
    assert code == 2
    assert "allow_plaintext" in text


def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    text = good(tmp_path).replace('tls = "off"', 'tls = "server"') + (
        '[tls]\ncertificate = "/nowhere/a.crt"\nkey = "/nowhere/a.key"\n'
    )
    code, said = serve(written(tmp_path, text))
    assert code == 1
    assert "/nowhere/a.crt" in said


def handshake(node: Gateway, context: ssl.SSLContext) -> None:
    """Connect and read, since a TLS 1.3 client hears of a refused certificate at its first read."""
    with (
        socket.create_connection(("127.0.0.1", node.mqtts), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x")
        if not secure.recv(4):
            raise ConnectionResetError


def failures(node: Gateway, reason: str) -> float:
    return node.metric(f'headworks_tls_handshakes_failed_total{{reason="{reason}"}}')


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "no_certificate"),
        ("foreign", "unknown_ca"),
        ("expired", "expired"),
        ("revoked", "revoked"),
        ("old_tls", "protocol_version"),
    ],
)
def test_a_bad_certificate_fails_the_handshake_with_its_reason(
    node: Gateway, tmp_path: Path, kind: str, reason: str
) -> None:
    context = ssl.create_default_context(cafile=str(node.ca.ca_path))
    if kind == "foreign":
        issued = DevelopmentCa.create(tmp_path).device("acme", "x")
        context.load_cert_chain(issued.certificate, issued.key)
    elif kind == "expired":
        issued = node.ca.device("acme", "old", days=0)
        context.load_cert_chain(issued.certificate, issued.key)
    elif kind == "revoked":
        issued = node.ca.device("acme", "stolen")
        context.load_cert_chain(issued.certificate, issued.key)
        node.ca.revoke(issued.certificate)
        time.sleep(2.5)
    elif kind == "old_tls":
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the point is that it is too old
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    before = failures(node, reason)
    with pytest.raises(OSError):  # noqa: PT011  # ssl has many words for it
        handshake(node, context)
    assert failures(node, reason) == before + 1


def test_the_live_session_of_a_revoked_device_is_closed(node: Gateway) -> None:
    issued, stream = node.ca.device("acme", "live"), new_stream()
    closed: list[int] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="live", protocol=MQTTProtocolVersion.MQTTv5)
    client.tls_set_context(client_tls(node, issued))
    client.on_disconnect = lambda _c, _u, _f, reason, _p: closed.append(reason.value)
    client.connect("localhost", node.mqtts)
    client.loop_start()
    try:
        client.publish(f"dt/acme/live/{stream}", json.dumps(telemetry()), qos=1).wait_for_publish(5)
        node.ca.revoke(issued.certificate)
        until = time.monotonic() + 5
        while not closed and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        client.loop_stop()
    assert closed[0] == 0x87


def test_a_bad_set_of_certificates_keeps_the_old_one_and_raises_an_alert(node: Gateway) -> None:
    good_text = node.ca.crl_path.read_bytes()
    node.ca.crl_path.write_bytes(b"not a list")
    node.wait_until(lambda: node.metric('headworks_tls_reload_failed{worker="0"}') == 1)
    issued = node.ca.device("acme", "still")
    handshake(node, client_tls(node, issued))
    node.ca.crl_path.write_bytes(good_text)
    node.wait_until(lambda: node.metric('headworks_tls_reload_failed{worker="0"}') == 0)


async def test_a_device_publishes_for_itself_only(node: Gateway) -> None:
    issued, stream = node.ca.device("acme", "own"), new_stream()
    context = client_tls(node, issued)
    async with aiomqtt.Client(
        "127.0.0.1", node.mqtts, tls_context=context, identifier="own", protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        await client.publish(f"dt/acme/own/{stream}", json.dumps(telemetry()), qos=1)
        await client.publish(f"dt/acme/other/{stream}", json.dumps(telemetry()), qos=1)
        await client.publish(f"dt/other/own/{stream}", json.dumps(telemetry()), qos=1)
    assert [row[:2] for row in found(node, stream, 1)] == [("acme", "own")]


async def test_a_gateway_publishes_for_the_devices_of_its_tenant(node: Gateway) -> None:
    issued, stream = node.ca.device("acme", "gw", kind="gateway"), new_stream()
    context = client_tls(node, issued)
    async with aiomqtt.Client("127.0.0.1", node.mqtts, tls_context=context, identifier="gw") as client:
        for device in ("a", "b"):
            await client.publish(f"dt/acme/{device}/{stream}", json.dumps(telemetry()), qos=1)
    assert [row[1] for row in found(node, stream, 2)] == ["a", "b"]


def run(node: Gateway, *arguments: str) -> str:
    command = [sys.executable, "-m", "commands.cli", *arguments, "--data-dir", str(node.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


async def post(url: str, **options: Any) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as client, client.post(url, **options) as response:
        return response.status, dict(response.headers)


async def test_a_suspended_tenant_is_refused_and_served_again_when_resumed(node: Gateway) -> None:
    url = f"http://127.0.0.1:{node.http}/v1/tenants/mallory/devices/d/telemetry/s"
    assert (await post(url, json=telemetry()))[0] == 202
    await asyncio.to_thread(run, node, "tenants", "suspend", "mallory")
    await asyncio.sleep(2)
    assert (await post(url, json=telemetry()))[0] == 403
    await asyncio.to_thread(run, node, "tenants", "resume", "mallory")
    await asyncio.sleep(2)
    assert (await post(url, json=telemetry()))[0] == 202


async def test_an_api_key_is_good_until_it_is_revoked(node: Gateway) -> None:
    secret = await asyncio.to_thread(run, node, "keys", "add", "acme", "key-device")
    url, headers = f"http://127.0.0.1:{node.http}/v1/telemetry/s", {"X-API-Key": secret}
    assert (await post(url, json=telemetry(), headers=headers))[0] == 202
    assert (await post(url, json=telemetry(), headers={"X-API-Key": "hw_bad_key"}))[0] == 401
    await asyncio.to_thread(run, node, "keys", "revoke", secret.split("_")[1])
    assert (await post(url, json=telemetry(), headers=headers))[0] == 401


async def test_a_plan_that_refuses_answers_429_with_retry_after(node: Gateway) -> None:
    await asyncio.to_thread(run, node, "tenants", "add", "strict", "--plan", "refusing")
    await asyncio.sleep(2)
    url = f"http://127.0.0.1:{node.http}/v1/tenants/strict/devices/d/telemetry/s"
    answers = [await post(url, json=telemetry()) for _ in range(12)]
    taken = sum(1 for status, _ in answers if status == 202)
    assert 3 <= taken <= 9, answers
    status, headers = next(answer for answer in answers if answer[0] != 202)
    assert status == 429
    assert int(headers["Retry-After"]) >= 1


async def test_a_plan_that_pauses_loses_nothing_and_holds_over_both_workers(node: Gateway) -> None:
    await asyncio.to_thread(run, node, "tenants", "add", "slow", "--plan", "pausing")
    await asyncio.sleep(2)
    stream = new_stream()
    began = time.monotonic()

    async def publish(number: int) -> None:
        async with aiomqtt.Client("127.0.0.1", node.mqtt, identifier=f"slow-{number}") as client:
            for _ in range(30):
                await client.publish(f"dt/slow/d{number}/{stream}", json.dumps(telemetry()), qos=1)

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(publish(number))
    # 240 messages at 50 a second, after a burst of 50 and what two workers may have leased.
    assert time.monotonic() - began > 2.5
    found(node, stream, 240)


async def test_a_tenant_has_no_more_connections_than_its_plan_allows(node: Gateway) -> None:
    await asyncio.to_thread(run, node, "tenants", "add", "small", "--plan", "few")
    await asyncio.sleep(2)
    contexts = [client_tls(node, node.ca.device("small", f"d{number}")) for number in range(5)]
    clients = []
    refused = 0
    for number, context in enumerate(contexts):
        client = aiomqtt.Client("127.0.0.1", node.mqtts, tls_context=context, identifier=f"small-{number}")
        try:
            await client.__aenter__()
            clients.append(client)
        except aiomqtt.MqttError:
            refused += 1
    for client in clients:
        await client.__aexit__(None, None, None)
    assert (len(clients), refused) == (3, 2)


def test_what_was_malformed_is_kept_and_can_be_looked_at(node: Gateway) -> None:
    stream = new_stream()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=stream)
    client.connect("127.0.0.1", node.mqtt)
    client.loop_start()
    client.publish(f"dt/acme/odd/{stream}", b"{not json", qos=1).wait_for_publish(5)
    client.disconnect()
    client.loop_stop()
    letters = json.loads(run(node, "deadletters", "list", "--json"))
    letter = next(each for each in letters if each["stream"] == stream)
    assert letter["reason"] == "malformed"
    assert letter["accepted"]
    assert run(node, "deadletters", "show", letter["name"]) == "{not json"


def test_nothing_is_unaccounted_for(tmp_path: Path) -> None:
    with gateway(tmp_path) as node:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="sum")
        client.connect("127.0.0.1", node.mqtt)
        client.loop_start()
        for payload in (json.dumps(telemetry()), json.dumps([telemetry(), telemetry()]), "bad"):
            client.publish("dt/acme/sum/s", payload, qos=1).wait_for_publish(5)
        client.disconnect()
        client.loop_stop()
        node.wait_until(node.delivered)
        command = [sys.executable, "-m", "commands.cli", "doctor", "--config", str(node.config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stdout
        entry = node.status()["ledger"]["acme"]
        assert entry == {"accepted": 4, "delivered": 3, "spooled": 0, "dead_lettered": 1}
        assert node.stop() == 0
