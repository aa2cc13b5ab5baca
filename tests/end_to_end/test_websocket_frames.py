"""WebSocket frames as RFC 6455 lets a client send them, and as it does not, over real sockets."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Self

import pytest

from protocols.websocket import unmask
from tests.end_to_end.test_clients import client_tls, found, new_stream, telemetry
from tests.support.gateway import Gateway
from tests.support.mqtt_packets import connect, publish

pytestmark = pytest.mark.end_to_end
MASK = b"\x37\xfa\x21\x3d"
JSON, MSGPACK, MQTT = "headworks.v1.json", "headworks.v1.msgpack", "mqtt"
PATHS = {JSON: "/v1/stream", MSGPACK: "/v1/stream", MQTT: "/mqtt"}
CONNACK = b"\x20\x02\x00\x00"


def frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((first,)) + length + MASK + unmask(payload, MASK)


class Client:
    """A client that sends any bytes, and reads frames."""

    def __init__(
        self, port: int, protocol: str, early: bytes = b"", tls: ssl.SSLContext | None = None
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        head = f"GET {PATHS[protocol]} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        self._socket.sendall(f"{head}Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode() + early)
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline() != b"\r\n":
            pass

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> tuple[int, bytes]:
        """Return the first byte of a frame and its payload."""
        first, size = self._file.read(2)
        if size == 126:
            size = int.from_bytes(self._file.read(2), "big")
        return first, self._file.read(size)

    def is_closed(self) -> bool:
        return self._file.read(1) == b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture(params=["plain", "tls"])
def tls(hasty: Gateway, request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    return client_tls(hasty, hasty.ca.device("acme", "frames")) if request.param == "tls" else None


def port(node: Gateway, tls: ssl.SSLContext | None) -> int:
    return node.https if tls else node.http


def test_frames_that_come_with_the_handshake_are_read(hasty: Gateway, tls: ssl.SSLContext | None) -> None:
    with Client(port(hasty, tls), MQTT, frame(0x82, connect()), tls) as client:
        assert client.read() == (0x82, CONNACK)


def test_packets_are_split_over_frames_and_packed_in_them(hasty: Gateway, tls: ssl.SSLContext | None) -> None:
    stream = new_stream()
    payload = json.dumps(telemetry()).encode()
    packets = b"".join(
        publish(topic=f"dt/acme/frames/{stream}".encode(), payload=payload, packet_id=n) for n in range(1, 41)
    )
    parts = [packets[at : at + 71] for at in range(0, len(packets), 71)]
    fragments = [frame(0x02, parts[0]), *[frame(0x00, part) for part in parts[1:-1]], frame(0x80, parts[-1])]
    with Client(port(hasty, tls), MQTT, tls=tls) as client:
        client.send(frame(0x82, connect()))
        assert client.read() == (0x82, CONNACK)
        client.send(b"".join(frame(0x82, part) for part in parts) + frame(0x89, b"?") + b"".join(fragments))
        answers = b""
        pongs = []
        while len(answers) < 80 * 4:
            first, answer = client.read()
            if first == 0x82:
                answers += answer
            else:
                pongs.append((first, answer))
        assert pongs == [(0x8A, b"?")]
        once = b"".join(b"\x40\x02" + n.to_bytes(2, "big") for n in range(1, 41))
        assert answers == once + once
    found(hasty, stream, 80, 20)


def test_many_messages_of_one_read_are_acknowledged(hasty: Gateway) -> None:
    message = {"stream": "s", "data": telemetry(), "device": "acme/many"}
    with Client(hasty.http, JSON) as client:
        client.send(b"".join(frame(0x81, json.dumps({"id": n, **message}).encode()) for n in range(500)))
        acknowledged: list[int] = []
        while len(acknowledged) < 500:
            acknowledged += json.loads(client.read()[1])["ack"]
    assert acknowledged == list(range(500))


def test_a_close_is_answered_and_ends_the_connection(hasty: Gateway, tls: ssl.SSLContext | None) -> None:
    for protocol in (JSON, MQTT):
        with Client(port(hasty, tls), protocol, tls=tls) as client:
            client.send(frame(0x88, b"\x03\xe8bye"))
            assert client.read() == (0x88, b"\x03\xe8")
            assert client.is_closed()


@pytest.mark.parametrize("protocol", [JSON, MQTT])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x01a", 1002),
        (frame(0xC2, b"a"), 1002),
        (frame(0x83, b""), 1002),
        (frame(0x80, b""), 1002),
        (frame(0x88, b"\x03\xed"), 1002),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK, 1009),
    ],
)
def test_what_breaks_the_protocol_hears_the_code(
    hasty: Gateway, protocol: str, data: bytes, code: int
) -> None:
    name = f'headworks_protocol_errors_total{{protocol="{"mqtt" if protocol == MQTT else "websocket"}"}}'
    before = hasty.metric(name)
    with Client(hasty.http, protocol) as client:
        client.send(data + frame(0x82, b"is not read"))
        first, payload = client.read()
        assert (first, int.from_bytes(payload[:2], "big")) == (0x88, code)
        assert client.is_closed()
    assert hasty.metric(name) == before + 1


@pytest.mark.parametrize(("protocol", "code"), [(JSON, 1007), (MQTT, 1003)])
def test_text_is_utf_8_and_never_mqtt(hasty: Gateway, protocol: str, code: int) -> None:
    with Client(hasty.http, protocol) as client:
        client.send(frame(0x81, b"\xff"))
        assert client.read()[1][:2] == code.to_bytes(2, "big")
        assert client.is_closed()
