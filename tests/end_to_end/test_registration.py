"""`registration = "registered"`: a good certificate is not enough; who is suspended is put out."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_clients import client_tls, found, new_stream
from tests.end_to_end.test_refusals import run
from tests.support.gateway import Gateway
from tests.support.mqtt_packets import connect, publish

pytestmark = pytest.mark.end_to_end
BODY = b'{"ts": 1764000000000, "metrics": {"v": 1.5}}'
CLOSED_WITHIN_S = 10.0
NOT_AUTHORIZED_3, NOT_AUTHORIZED_5 = b"\x20\x02\x00\x05", 0x87
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcyE9PQ==\r\n"
    b"Sec-WebSocket-Protocol: headworks.v1.json\r\n\r\n"
)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Run a node that serves registered devices only. Nobody is registered."""
    folder: Path = tmp_path_factory.mktemp("node")
    node = Gateway(folder, workers=2)
    text = node.config.read_text()
    node.config.write_text(text.replace("[node]\n", '[node]\nregistration = "registered"\n'))
    node.start()
    yield node
    assert node.stop() == 0


class Device:
    """A device with a good certificate; what it hears is bytes."""

    def __init__(self, node: Gateway, name: str, kind: str, made: contextlib.ExitStack) -> None:
        self._node = node
        self._name = name
        self._context = client_tls(node, node.ca.device("acme", name, kind=kind))
        self._made = made

    def connection(self, port: int) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), CLOSED_WITHIN_S)
        return self._made.enter_context(self._context.wrap_socket(plain, server_hostname="localhost"))

    def mqtt(self, version: int) -> tuple[ssl.SSLSocket, bytes]:
        secure = self.connection(self._node.mqtts)
        secure.sendall(connect(client=f"{self._name}-{version}", version=version))
        return secure, secure.recv(200)

    def http(self, stream: str) -> tuple[ssl.SSLSocket, bytes]:
        secure = self.connection(self._node.https)
        head = f"POST /v1/telemetry/{stream} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
        secure.sendall(head.encode() + BODY)
        return secure, secure.recv(10_000)

    def websocket(self) -> tuple[ssl.SSLSocket, bytes]:
        secure = self.connection(self._node.https)
        secure.sendall(UPGRADE)
        return secure, secure.recv(10_000)


@pytest.fixture
def certified(closed: Gateway) -> Iterator[Callable[..., Device]]:
    """Return what makes devices and gateways, and closes their connections in the end."""
    with contextlib.ExitStack() as made:
        yield lambda name, kind="device": Device(closed, name, kind, made)


def last_words(secure: ssl.SSLSocket) -> bytes:
    """Return what a connection hears until the node closes it."""
    words = b""
    try:
        while part := secure.recv(1000):
            words += part
    except TimeoutError:
        raise
    except OSError:
        pass
    return words


def refusals(node: Gateway, reason: str) -> float:
    return node.metric(f'headworks_connections_refused_total{{reason="{reason}"}}')


def problem_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), str(json.loads(body)["type"])


def assert_refused_everywhere(node: Gateway, device: Device, reason: str) -> None:
    """Check that a device is refused by the name of `reason`, by everything that speaks."""
    before = refusals(node, reason)
    secure, answer = device.mqtt(4)
    assert answer == NOT_AUTHORIZED_3
    assert last_words(secure) == b""
    secure, answer = device.mqtt(5)
    assert (answer[0], answer[3]) == (0x20, NOT_AUTHORIZED_5)
    assert reason.encode() in answer, "as a reason string"
    assert last_words(secure) == b""
    slug = f"urn:headworks:problem:{reason.replace('_', '-')}"
    for _, answer in (device.http("s"), device.websocket()):
        assert problem_of(answer) == (403, slug)
    assert refusals(node, reason) == before + 4
    assert f'"reason": "{reason}"' in node.log.read_text()


def test_a_device_comes_in_when_it_is_registered_and_is_put_out_when_it_is_suspended(
    closed: Gateway, certified: Callable[..., Device]
) -> None:
    device, stream = certified("pump"), new_stream()
    assert_refused_everywhere(closed, device, "not_registered")
    run(closed, "tenants", "add", "acme")
    assert_refused_everywhere(closed, device, "not_registered")

    run(closed, "devices", "add", "acme", "pump")
    (mqtt_3, answer_3), (mqtt_5, answer_5) = device.mqtt(4), device.mqtt(5)
    assert (answer_3, answer_5[:4:3]) == (b"\x20\x02\x00\x00", b"\x20\x00")
    topic = f"dt/acme/pump/{stream}".encode()
    mqtt_3.sendall(publish(topic=topic, payload=BODY))
    assert mqtt_3.recv(100) == b"\x40\x02\x00\x01"
    mqtt_5.sendall(publish(topic=topic, payload=BODY, properties=b""))
    assert mqtt_5.recv(100)[:1] == b"\x40"
    http, answer = device.http(stream)
    assert answer.startswith(b"HTTP/1.1 202 ")
    websocket, answer = device.websocket()
    assert answer.startswith(b"HTTP/1.1 101 ")
    found(closed, stream, 3)
    neighbour = certified("valve")
    assert_refused_everywhere(closed, neighbour, "not_registered")
    run(closed, "devices", "add", "acme", "valve")
    stays, answer = neighbour.mqtt(4)
    assert answer == b"\x20\x02\x00\x00"

    put_out = closed.metric('headworks_connections_closed_total{reason="revoked"}')
    run(closed, "devices", "suspend", "acme", "pump")
    began_s = time.monotonic()
    assert last_words(mqtt_3) == b""
    goodbye = last_words(mqtt_5)
    assert (goodbye[0], goodbye[2]) == (0xE0, NOT_AUTHORIZED_5)
    assert b"suspended" in goodbye
    assert last_words(http) == b""
    last_words(websocket)
    assert time.monotonic() - began_s < CLOSED_WITHIN_S
    closed.wait_until(
        lambda: closed.metric('headworks_connections_closed_total{reason="revoked"}') >= put_out + 2
    )
    assert_refused_everywhere(closed, device, "suspended")
    stays.sendall(publish(topic=f"dt/acme/valve/{stream}".encode(), payload=BODY))
    assert stays.recv(100) == b"\x40\x02\x00\x01", "its neighbour is served all the while"

    run(closed, "devices", "resume", "acme", "pump")
    assert device.mqtt(4)[1] == b"\x20\x02\x00\x00"


def test_a_gateway_that_is_registered_publishes_for_registered_devices_only(
    closed: Gateway, certified: Callable[..., Device]
) -> None:
    stream = new_stream()
    run(closed, "tenants", "add", "acme")
    run(closed, "devices", "add", "acme", "hub", "known")
    secure, answer = certified("hub", "gateway").mqtt(5)
    assert answer[3] == 0
    reasons = []
    for number, device in enumerate(("known", "unknown"), start=1):
        topic = f"dt/acme/{device}/{stream}".encode()
        secure.sendall(publish(topic=topic, payload=BODY, packet_id=number, properties=b""))
        answer = secure.recv(200)
        reasons.append(0 if answer[1] == 2 else answer[4])
    assert reasons == [0, NOT_AUTHORIZED_5]
    assert [row[:2] for row in found(closed, stream, 1)] == [("acme", "known")]
