"""WebSockets as nobody should speak them, and how they are counted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from tests.end_to_end.test_clients import client_tls, found, new_stream, telemetry
from tests.end_to_end.test_refusals import run
from tests.support.gateway import Gateway, gateway
from tests.support.mqtt_packets import connect, publish

pytestmark = pytest.mark.end_to_end
BINARY, TEXT = 2, 1
OPENED, CLOSED = "headworks_connections_opened_total{", "headworks_connections_closed_total{"
UNLIMITED = """
[limits.default]
device_messages_per_s = 0
device_bytes_per_s = 0
"""
NOWHERE = """kind = "kinesis"
stream = "s"
region = "eu-central-1"
endpoint = "http://127.0.0.1:1"
call_deadline_s = 1.0
"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("strict")
    plan = '[limits.default]\ndevice_messages_per_s = 1\nburst_s = 1\nover_limit = "pause"\n'
    with gateway(folder, extra=f"{plan}[http]\nwebsocket_ping_s = 1\n") as started:
        yield started


class Peer:
    """A WebSocket client that holds next to nothing of what it is sent, and reads it only when told to."""

    def __init__(self, port: int, path: str, protocol: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(5)
        self._socket.connect(("127.0.0.1", port))
        key = base64.b64encode(bytes(16)).decode()
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        self._socket.sendall(f"{head}Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one message, masked with zeros."""
        size = len(payload)
        if size < 126:
            length = bytes((0x80 | size,))
        elif size < 65_536:
            length = b"\xfe" + size.to_bytes(2, "big")
        else:
            length = b"\xff" + size.to_bytes(8, "big")
        self._socket.sendall(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

    def receive(self) -> bytes:
        """Return some bytes, or none once the server has closed."""
        return self._socket.recv(65_536)

    def send_until_refused(self, opcode: int, payload: bytes, bytes_max: int) -> int:
        """Send until the server reads no more; return how much it took."""
        sent = 0
        self._socket.settimeout(0.5)
        with contextlib.suppress(OSError):
            while sent < bytes_max:
                self.send(opcode, payload)
                sent += len(payload)
        return sent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def balance(node: Gateway) -> int:
    """Return how many connections were opened and not closed, as the metrics say."""
    lines = node.get("/metrics")[1].decode().splitlines()
    sums = [
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
        for name in (OPENED, CLOSED)
    ]
    return int(sums[0] - sums[1])


FRAME = b'{"id":1,"stream":"s s","data":1,"device":"t/d"}'  # is refused with some text
FLOODS = {
    "frames": ("/v1/stream", "headworks.v1.json", TEXT, b"[" + b",".join([FRAME] * 9000) + b"]"),
    "pings": ("/mqtt", "mqtt", BINARY, b"\xc0\x00" * 30_000),
}


@contextlib.contextmanager
def flood(node: Gateway, kind: str, bytes_max: int) -> Iterator[int]:
    """Ask for answers until the gateway reads no more, without reading any; yield how much it took."""
    path, protocol, opcode, payload = FLOODS[kind]
    with Peer(node.http, path, protocol) as peer:
        if protocol == "mqtt":
            peer.send(BINARY, connect())
        yield peer.send_until_refused(opcode, payload, bytes_max)


@pytest.mark.parametrize("kind", FLOODS)
def test_a_peer_that_does_not_read_its_answers_is_read_no_more(strict: Gateway, kind: str) -> None:
    """What the kernel holds of it on both sides is some 10 MiB."""
    with flood(strict, kind, 30 << 20) as sent:
        assert sent < 20 << 20


@pytest.mark.parametrize("kind", FLOODS)
def test_a_peer_that_does_not_read_its_answers_is_cut_off(hasty: Gateway, kind: str) -> None:
    with flood(hasty, kind, 30 << 20):
        hasty.wait_until(lambda: hasty.status()["connections"] == 0, 10)


async def test_every_connection_is_counted_once_in_and_once_out(hasty: Gateway) -> None:
    def opened(protocol: str) -> int:
        return int(hasty.metric(f'{OPENED}protocol="{protocol}"}}'))

    hasty.wait_until(lambda: hasty.status()["connections"] == 0, 10)
    before = {protocol: opened(protocol) for protocol in ("http", "websocket", "mqtt")}
    url = f"http://127.0.0.1:{hasty.http}"
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{url}/v1/telemetry/s") as response:
            assert response.status == 405
        for path, protocol in (("/v1/stream", "headworks.v1.json"), ("/mqtt", "mqtt")):
            async with client.ws_connect(f"{url}{path}", protocols=(protocol,)) as socket:
                if protocol == "mqtt":
                    await socket.send_bytes(connect())
                    assert (await socket.receive_bytes()) == b"\x20\x02\x00\x00"
                await asyncio.to_thread(hasty.wait_until, lambda: hasty.status()["connections"] >= 1, 5)
                assert balance(hasty) == hasty.status()["connections"] == 1
    await asyncio.to_thread(hasty.wait_until, lambda: hasty.status()["connections"] == 0, 10)
    assert balance(hasty) == 0
    after = {protocol: opened(protocol) - count for protocol, count in before.items()}
    assert after == {"http": 1, "websocket": 1, "mqtt": 1}


async def test_a_websocket_hears_why_it_is_closed_when_its_device_is_suspended(hasty: Gateway) -> None:
    context = client_tls(hasty, hasty.ca.device("acme", "ws-out"))
    url = f"https://localhost:{hasty.https}/v1/stream"
    revoked = f'{CLOSED}reason="revoked"}}'
    before = hasty.metric(revoked)
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(url, protocols=("headworks.v1.json",), ssl=context) as socket,
    ):
        await socket.send_json({"id": 1, "stream": "s", "data": telemetry()})
        assert (await socket.receive_json()) == {"ack": [1]}
        await asyncio.to_thread(run, hasty, "devices", "suspend", "acme", "ws-out")
        message = await socket.receive(10)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
    hasty.wait_until(lambda: hasty.metric(revoked) == before + 1, 5)


async def test_frames_are_acknowledged_to_a_client_that_reads_late(hasty: Gateway) -> None:
    stream = new_stream()
    url = f"http://127.0.0.1:{hasty.http}/v1/stream"
    frame = {"stream": stream, "data": telemetry(), "device": "acme/late"}
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(url, protocols=("headworks.v1.json",)) as socket,
    ):
        for batch in range(4):  # more than may be unacknowledged at once
            await socket.send_json([{"id": batch * 2000 + n, **frame} for n in range(2000)])
        acknowledged: list[int] = []
        async with asyncio.timeout(30):
            while len(acknowledged) < 8000:
                acknowledged += (await socket.receive_json())["ack"]
    assert acknowledged == list(range(8000))
    found(hasty, stream, 8000, 20)


def test_a_websocket_that_is_gone_is_noticed_while_it_is_not_read(tmp_path: Path) -> None:
    """Its publishes wait for room in a full spool."""
    node = Gateway(tmp_path, sink=NOWHERE, extra=f"[spool]\nbytes_max = 20000\n{UNLIMITED}")
    node.start(wait=False)
    try:
        node.wait_until(lambda: node.get("/healthz")[0] == 200)
        payload = json.dumps({"ts": 1, "metrics": {"a": "x" * 1000}}).encode()
        with contextlib.ExitStack() as open_peers:
            peers = [open_peers.enter_context(Peer(node.http, "/mqtt", "mqtt")) for _ in range(5)]
            for number, peer in enumerate(peers):
                peer.send(BINARY, connect(client=f"c{number}", keep_alive=0))
                assert peer.receive()
            for packet_id in range(1, 61):
                for peer in peers:
                    peer.send(BINARY, publish(topic=b"dt/t/d/s", payload=payload, packet_id=packet_id))
            node.wait_until(lambda: b"is full" in node.get("/readyz")[1])
            assert node.status()["connections"] == 5
        node.wait_until(lambda: node.status()["connections"] == 0, 5)
        with contextlib.closing(sqlite3.connect(node.data_dir / "worker-0" / "spool.db")) as connection:
            [(stored,)] = connection.execute("SELECT sum(bytes) FROM groups")
        assert stored < 2_000_000
    finally:
        node.kill_all()


def frames(device: str, count: int) -> bytes:
    """Return a message that is paid for with a pause of `count` seconds."""
    many = [{"id": n, "stream": "s", "data": telemetry(), "device": device} for n in range(count)]
    return json.dumps(many).encode()


def test_a_client_that_is_over_its_limit_and_gone_is_not_waited_for(strict: Gateway) -> None:
    with Peer(strict.http, "/v1/stream", "headworks.v1.json") as peer:
        peer.send(TEXT, frames("t/gone", 200))
        assert peer.receive()
        strict.wait_until(lambda: strict.status()["connections"] == 1, 5)
    strict.wait_until(lambda: strict.status()["connections"] == 0, 5)
    assert balance(strict) == 0


def test_a_client_that_is_not_read_for_its_limit_is_not_cut_off_for_its_silence(strict: Gateway) -> None:
    """What it has sent fills the way, so that it could not answer a ping if it would."""
    with Peer(strict.http, "/v1/stream", "headworks.v1.json") as peer:
        peer.send(TEXT, frames("t/many", 100))
        peer.send_until_refused(TEXT, frames("t/many", 5000), 100 << 20)
        until_s = time.monotonic() + 2
        while time.monotonic() < until_s:
            with contextlib.suppress(TimeoutError):
                assert peer.receive(), "closed"
        assert strict.status()["connections"] == 1


def test_a_client_that_answers_no_ping_is_cut_off(strict: Gateway) -> None:
    lost = f'{CLOSED}reason="lost"}}'
    before = strict.metric(lost)
    with Peer(strict.http, "/v1/stream", "headworks.v1.json") as peer:
        assert peer.receive() == b"\x89\x00", "a ping"
        assert peer.receive() == b""
    strict.wait_until(lambda: strict.metric(lost) == before + 1, 5)
